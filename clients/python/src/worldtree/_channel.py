"""How a server is reached: address, key, encryption, timeout, message sizes. No channel is opened here."""

import os
import time
from dataclasses import dataclass
from pathlib import Path

import grpc

from worldtree._retry import Attempts
from worldtree._trace import trace_metadata
from worldtree.convert import seconds
from worldtree.errors import FailedPrecondition, InvalidRequest
from worldtree.tls import Tls, TlsLike
from worldtree.types import Seconds

DEFAULT_ADDRESS = "localhost:7070"
DEFAULT_TIMEOUT_S = 60.0
MAX_MESSAGE_BYTES = 64 * 2**20
LOOPBACK = ("localhost", "127.", "[::1]", "::1", "ipv4:127.", "ipv6:[::1]")


@dataclass(frozen=True, slots=True)
class ChannelSettings:
    """What both clients need to open their channel."""

    address: str
    api_key: str | None
    tls: Tls | None  # None: no encryption
    timeout_s: float

    @classmethod
    def resolve(
        cls, address: str | None, *, api_key: str | None, tls: TlsLike, timeout: Seconds | None
    ) -> "ChannelSettings":
        """Arguments first, then WORLDTREE_ADDRESS, WORLDTREE_API_KEY and WORLDTREE_TIMEOUT, then defaults."""
        address = address or os.environ.get("WORLDTREE_ADDRESS") or DEFAULT_ADDRESS
        return cls(
            address=address,
            api_key=api_key or os.environ.get("WORLDTREE_API_KEY") or None,
            tls=_tls(tls),
            timeout_s=_default_timeout_s() if timeout is None else seconds(timeout, field="timeout"),
        )

    @property
    def options(self) -> list[tuple[str, int | str]]:
        options: list[tuple[str, int | str]] = [
            ("grpc.max_receive_message_length", MAX_MESSAGE_BYTES),
            ("grpc.max_send_message_length", MAX_MESSAGE_BYTES),
            # A server that restarts is found again within a second or two, not after gRPC's default of up to 120 s.
            ("grpc.initial_reconnect_backoff_ms", 200),
            ("grpc.min_reconnect_backoff_ms", 200),
            ("grpc.max_reconnect_backoff_ms", 2000),
            # A connection that died without a word is noticed while a call waits on it.
            ("grpc.keepalive_time_ms", 30_000),
            ("grpc.keepalive_timeout_ms", 10_000),
            # Retries are ours: gRPC's own would not know which calls are safe.
            ("grpc.enable_retries", 0),
        ]
        if self.address.startswith(LOOPBACK):
            # A proxy of the environment does not lead back to this machine.
            options.append(("grpc.enable_http_proxy", 0))
        return options

    @property
    def credentials(self) -> grpc.ChannelCredentials | None:
        """None: no encryption."""
        if self.tls is None:
            return None
        files = (self.tls.ca_file, self.tls.key_file, self.tls.cert_file)
        return grpc.ssl_channel_credentials(*(None if file is None else Path(file).read_bytes() for file in files))

    @property
    def metadata(self) -> tuple[tuple[str, str], ...]:
        """What each call says beside its message. Looked up for each: a trace is the caller's of the moment."""
        key = (("authorization", f"Bearer {self.api_key}"),) if self.api_key else ()
        return (*key, *trace_metadata())

    def attempts(self, *, safe: bool, timeout: Seconds | None) -> Attempts:
        timeout_s = None if timeout is None else seconds(timeout, field="timeout")
        return Attempts(safe=safe, timeout_s=timeout_s, clock=time.monotonic)


def client_closed() -> FailedPrecondition:
    return FailedPrecondition(
        "the client is closed", reason="CLIENT_CLOSED", remedy="make a new Client, or stay inside its `with`"
    )


def _tls(given: TlsLike) -> Tls | None:
    if isinstance(given, bool):
        return Tls() if given else None
    tls = given if isinstance(given, Tls) else Tls(ca_file=given)
    if (tls.cert_file is None) != (tls.key_file is None):
        raise InvalidRequest("tls must have both cert_file and key_file, or none of them", field="tls")
    for file in (tls.ca_file, tls.cert_file, tls.key_file):
        if file is not None and not Path(file).is_file():
            raise InvalidRequest(f"tls must be true, false, Tls or a file of CA certificates, got {file}", field="tls")
    return tls


def _default_timeout_s() -> float:
    text = os.environ.get("WORLDTREE_TIMEOUT")
    if not text:
        return DEFAULT_TIMEOUT_S
    try:
        return seconds(float(text), field="WORLDTREE_TIMEOUT")
    except ValueError:
        raise InvalidRequest(
            f"WORLDTREE_TIMEOUT must be a number of seconds, got {text!r}", field="WORLDTREE_TIMEOUT"
        ) from None
