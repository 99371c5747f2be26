"""The URL of a Redis: of one server, of one that sentinels name, or of a cluster; encrypted or not."""

from dataclasses import dataclass
from typing import Literal, Self, TypeAlias
from urllib.parse import parse_qsl, urlencode, urlsplit

from worldtree_runtime.address import joined

Topology: TypeAlias = Literal["server", "sentinel", "cluster"]

FORMS = (
    "redis://HOST:PORT/DB, redis+sentinel://HOST:PORT,HOST:PORT/SERVICE/DB, redis+cluster://HOST:PORT,HOST:PORT "
    "(rediss for redis where it is encrypted) or unix:///PATH"
)
_TLS_OPTIONS = {"ssl_ca_certs", "ssl_certfile", "ssl_keyfile", "ssl_check_hostname"}
_SENTINEL_OPTIONS = {"sentinel_username", "sentinel_password"}
_PORTS: dict[Topology, int] = {"server": 6379, "sentinel": 26379, "cluster": 6379}
_TOPOLOGIES: dict[str, Topology] = {"": "server", "sentinel": "sentinel", "cluster": "cluster"}


@dataclass(frozen=True, slots=True)
class RedisUrl:
    """`nodes`: the server, the sentinels, or some of the cluster. `service`: the sentinels' name of what they watch.
    `server`: the URL of any server, in the plain form, with all that is said of how to reach one; its host is the first
    node's. `sentinel_login`: user and password that the sentinels ask for, empty where they don't.
    """

    topology: Topology
    nodes: tuple[tuple[str, int], ...]
    server: str
    service: str = ""
    sentinel_login: tuple[str, str] = ("", "")

    @classmethod
    def parse(cls, url: str) -> Self:
        """Raises ValueError, in whose text is nothing of the URL: that may hold a password."""
        try:
            return cls._parsed(url)
        except ValueError:
            raise ValueError(f"must be {FORMS}") from None

    @classmethod
    def _parsed(cls, url: str) -> Self:
        parts = urlsplit(url)
        scheme, _, kind = parts.scheme.partition("+")
        if scheme == "unix" and not kind and parts.path:
            return cls("server", (), url)
        if scheme not in ("redis", "rediss") or kind not in _TOPOLOGIES:
            raise ValueError(scheme)
        topology = _TOPOLOGIES[kind]
        login, at, hosts = parts.netloc.rpartition("@")
        nodes = tuple(_node(host, _PORTS[topology]) for host in hosts.split(","))
        if topology == "server" and len(nodes) > 1:
            raise ValueError("one server")
        service, database = "", parts.path.strip("/")
        if topology == "sentinel":
            service, _, database = database.partition("/")
            if not service:
                raise ValueError("no service")
        if topology == "cluster" and database not in ("", "0"):
            raise ValueError("a cluster has one database")
        options = dict(parse_qsl(parts.query, strict_parsing=bool(parts.query)))
        asked = {name: options.pop(name, "") for name in _SENTINEL_OPTIONS if topology == "sentinel"}
        if not options.keys() <= {"db", *(_TLS_OPTIONS if scheme == "rediss" else ())}:
            raise ValueError("unknown option")
        server = f"{scheme}://{login}{at}{joined(*nodes[0])}/{database}" + (f"?{urlencode(options)}" if options else "")
        return cls(
            topology, nodes, server, service, (asked.get("sentinel_username", ""), asked.get("sentinel_password", ""))
        )


def _node(text: str, port: int) -> tuple[str, int]:
    parts = urlsplit(f"//{text}")
    if not parts.hostname or parts.path:
        raise ValueError("no host")
    return parts.hostname, port if parts.port is None else parts.port
