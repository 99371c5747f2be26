"""What keeps strangers out of a gateway, put together from its settings."""

import logging
import os
import tempfile
from collections.abc import AsyncIterator, Iterator, Sequence
from contextlib import AsyncExitStack, asynccontextmanager, contextmanager
from dataclasses import dataclass
from functools import partial

import grpc.aio
from worldtree_runtime.settings import SettingsError

from worldtree_gateway.access import Access
from worldtree_gateway.audit import AuditLog
from worldtree_gateway.authenticator import Authenticator
from worldtree_gateway.config import GatewaySettings
from worldtree_gateway.domain import GATEWAY, Service
from worldtree_gateway.guard import Guard
from worldtree_gateway.key_ring import KeyRing, RedisKeys, read_keys
from worldtree_gateway.metrics import GatewayMetrics
from worldtree_gateway.peer_limit import PeerCalls, PeerLimit
from worldtree_gateway.reloaded import ReloadedFiles
from worldtree_gateway.tls import Certificates
from worldtree_gateway.tokens import TokenVerifier, read_jwks

_log = logging.getLogger(__name__)


@dataclass(frozen=True, slots=True)
class Security:
    """`authenticator`: None where no credentials are asked for. `certificates`: None where nothing is encrypted.

    `inside`: where this process reaches its own server, past the encryption, past other processes on its port, or
    uncounted; None: at its address.
    """

    authenticator: Authenticator | None
    audit: AuditLog
    peers: PeerCalls
    interceptors: Sequence[grpc.aio.ServerInterceptor]
    certificates: Certificates | None
    options: Sequence[tuple[str, int]]
    inside: str | None


@asynccontextmanager
async def open_security(
    settings: GatewaySettings, services: Sequence[Service], metrics: GatewayMetrics, *, shares_port: bool = False
) -> AsyncIterator[Security]:
    """For as long as the gateway serves. Raises SettingsError or OSError where keys or certificates can't be read."""
    async with AsyncExitStack() as stack:
        shared = None
        if settings.keys_redis:
            shared = RedisKeys(str(settings.redis_url), every_s=settings.credentials_look_s)
            stack.push_async_callback(shared.close)
            await shared.start()
        try:
            certificates = _open_certificates(settings)
            authenticator = _open_authenticator(settings, shared)
        except ValueError as error:  # of a file
            raise SettingsError(str(error)) from error
        if authenticator is not None:
            stack.callback(authenticator.close)
        _warn(settings)
        audit = AuditLog(settings.audit)

        def guard(knowing: Authenticator) -> Guard:
            return Guard(knowing, Access((*services, GATEWAY)), audit, metrics, stream_look_s=settings.stream_look_s)

        peers = PeerCalls(settings.max_peer_calls, metrics)
        own_socket = certificates is not None or shares_port or settings.max_peer_calls > 0
        yield Security(
            authenticator=authenticator,
            audit=audit,
            peers=peers,
            interceptors=(
                *((PeerLimit(peers),) if settings.max_peer_calls else ()),
                *(() if authenticator is None else (guard(authenticator),)),
            ),
            certificates=certificates,
            options=_options(settings),
            inside=stack.enter_context(_socket()) if own_socket else None,
        )


@contextmanager
def _socket() -> Iterator[str]:
    """A place for a socket that only this user's processes reach."""
    with tempfile.TemporaryDirectory(prefix="worldtree-") as folder:
        yield f"unix:{os.path.join(folder, 'grpc')}"


def _open_authenticator(settings: GatewaySettings, shared: RedisKeys | None) -> Authenticator | None:
    if not settings.authenticates:
        return None
    every_s, file, tokens = settings.credentials_look_s, settings.keys_file, None
    keys = None
    if file is not None or shared is not None:
        files = None if file is None else ReloadedFiles([file], partial(read_keys, file), every_s=every_s)
        keys = KeyRing(files, shared)
    jwks = settings.jwks_file
    if jwks is not None:
        tokens = TokenVerifier(
            ReloadedFiles([jwks], partial(read_jwks, jwks), every_s=every_s),
            issuer=settings.jwt_issuer,
            audience=settings.jwt_audience,
            leeway_s=settings.jwt_leeway_s,
            tenant_claim=settings.jwt_tenant_claim,
            role_claim=settings.jwt_role_claim,
        )
    return Authenticator(keys, tokens)


def _open_certificates(settings: GatewaySettings) -> Certificates | None:
    if settings.tls_cert_file is None or settings.tls_key_file is None:
        return None
    return Certificates(
        settings.tls_cert_file, settings.tls_key_file, settings.tls_client_ca_file, look_s=settings.credentials_look_s
    )


def _options(settings: GatewaySettings) -> Sequence[tuple[str, int]]:
    return (
        ("grpc.max_allowed_incoming_connections", settings.max_connections),
        ("grpc.max_concurrent_streams", settings.max_connection_streams),
        ("grpc.max_connection_age_ms", round(settings.max_connection_age_s * 1000)),
        ("grpc.max_connection_idle_ms", round(settings.max_connection_idle_s * 1000)),
        ("grpc.server_handshake_timeout_ms", round(settings.handshake_timeout_s * 1000)),
        ("grpc.http2.min_ping_interval_without_data_ms", round(settings.ping_interval_min_s * 1000)),
        ("grpc.http2.max_ping_strikes", settings.ping_strikes),
    )


def _warn(settings: GatewaySettings) -> None:
    if settings.authenticates and settings.tls_cert_file is None and not settings.is_on_loopback:
        _log.warning(
            "credentials cross the network in clear text: set tls_cert_file, or let what stands before this encrypt",
            extra={"host": settings.host},
        )
