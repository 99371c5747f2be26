"""Whether Redis answers: a PING over a bare socket. The SDK has no Redis package, and needs none for this."""

import socket
import ssl
from contextlib import ExitStack
from urllib.parse import SplitResult, parse_qs, unquote, urlsplit

from worldtree.cli.finding import Finding, Verdict

_TIMEOUT_S = 2.0
_FORMS = (
    "write redis://HOST:PORT/DATABASE, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE or redis+cluster://HOST:PORT,..."
)
_PORTS = {"": 6379, "sentinel": 26379, "cluster": 6379}


def redis(url: str | None) -> Finding:
    """Of each server that the URL names; of a cluster and of sentinels one that answers is enough."""
    if not url:
        return Finding(
            "redis", Verdict.OK, "none set: services keep their state in memory, and in the folders that they are told"
        )
    parts = urlsplit(url)
    scheme, _, kind = parts.scheme.partition("+")
    hosts = parts.netloc.rpartition("@")[2]
    subject = f"redis {hosts}"
    if scheme == "unix":
        return Finding(subject, Verdict.NOTE, "unix:// is not looked at here")
    try:
        named = [(node.hostname, node.port or _PORTS[kind]) for node in map(_node, hosts.split(","))]
    except (ValueError, KeyError) as error:
        return Finding(subject, Verdict.BAD, str(error), _FORMS)
    nodes = [(host, port) for host, port in named if host]
    if scheme not in ("redis", "rediss") or len(nodes) < len(named):
        return Finding(subject, Verdict.BAD, "is no URL of a Redis", _FORMS)
    found = [_asked(parts, host, port, sentinel=kind == "sentinel") for host, port in nodes]
    silent = [finding for finding in found if finding.verdict is Verdict.BAD]
    if not silent:
        return Finding(subject, Verdict.OK, "answers")
    if len(silent) < len(found):
        return Finding(subject, Verdict.NOTE, f"{silent[0].subject}: {silent[0].found}; others answer")
    return Finding(subject, Verdict.BAD, silent[0].found, silent[0].advice)


def _node(text: str) -> SplitResult:
    return urlsplit(f"//{text}")


def _asked(url: SplitResult, host: str, port: int, *, sentinel: bool) -> Finding:
    options = {name: values[-1] for name, values in parse_qs(url.query).items()}
    user, password = (unquote(url.username or ""), unquote(url.password or ""))
    if sentinel:  # who have logins of their own
        user, password = options.get("sentinel_username", ""), options.get("sentinel_password", "")
    subject = f"{host}:{port}"
    try:
        with ExitStack() as stack:
            connected = stack.enter_context(socket.create_connection((host, port), _TIMEOUT_S))
            if url.scheme.startswith("rediss"):
                context = ssl.create_default_context(cafile=options.get("ssl_ca_certs"))
                context.check_hostname = options.get("ssl_check_hostname", "yes").lower() not in ("no", "false", "0")
                if "ssl_certfile" in options:
                    context.load_cert_chain(options["ssl_certfile"], options.get("ssl_keyfile"))
                connected = stack.enter_context(context.wrap_socket(connected, server_hostname=host))
            if password:
                reply = _told(connected, "AUTH", *([user] if user else []), password)
                if not reply.startswith(b"+OK"):
                    return Finding(subject, Verdict.BAD, _reply_text(reply), "check the password in the URL")
            reply = _told(connected, "PING")
    except OSError as error:
        return Finding(subject, Verdict.BAD, str(error), "start it, or unset WORLDTREE_REDIS_URL to run in memory")
    if reply.startswith(b"+PONG"):
        return Finding(subject, Verdict.OK, "answers")
    return Finding(subject, Verdict.BAD, _reply_text(reply), "is this a Redis, and does the URL name its password?")


def _told(connected: socket.socket, *words: str) -> bytes:
    encoded = [word.encode() for word in words]
    connected.sendall(b"*%d\r\n" % len(encoded) + b"".join(b"$%d\r\n%s\r\n" % (len(word), word) for word in encoded))
    return connected.recv(256)


def _reply_text(reply: bytes) -> str:
    return "answered " + repr(reply.decode("utf-8", "replace").strip()[:80])
