"""Certificates that are replaced while they are in use: each new connection gets the ones that lie there now."""

import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import grpc

from worldtree_gateway.reloaded import ReloadedFiles

_LOOK_S = 1.0


@dataclass(frozen=True, slots=True)
class _Read:
    """Files that fit together, as gRPC takes them and as all else does: when they are used, others may lie there."""

    chain: bytes
    key: bytes
    client_ca: bytes | None
    context: ssl.SSLContext

    def __repr__(self) -> str:
        return "_Read(...)"  # a key in a traceback would be one in the log


class Certificates:
    """A server's certificate chain and its key, PEM files; with `client_ca`, clients must show certificates of it.

    Files that don't fit together (somebody has replaced the first of two) are left alone until they do. Connections
    that are open keep what they were made with. Raises OSError or ValueError where the files can't be used.
    """

    def __init__(self, chain: Path, key: Path, client_ca: Path | None, *, look_s: float = _LOOK_S) -> None:
        self._chain, self._key, self._client_ca = chain, key, client_ca
        paths = [chain, key, *([] if client_ca is None else [client_ca])]
        self._files = ReloadedFiles(paths, self._read, every_s=look_s)
        self._told = self._files.get()

    def credentials(self) -> grpc.ServerCredentials:
        """For a gRPC server, of either kind."""
        fetch: Any = self._changed  # its stubs know no None, which says that nothing has changed
        return grpc.dynamic_ssl_server_credentials(
            _configuration(self._told), fetch, require_client_authentication=self._client_ca is not None
        )

    def context(self) -> ssl.SSLContext:
        """For a WebSocket server. It gives each connection the certificates of now, as the first step of a handshake:
        the certificate, and the CA that clients are checked against, are those of the context that is put in."""
        outer = self._files.get().context

        def put_in_the_current_one(connection: ssl.SSLObject, _name: str | None, _context: ssl.SSLContext) -> None:
            connection.context = self._files.get().context

        outer.sni_callback = put_in_the_current_one
        return outer

    def _changed(self) -> grpc.ServerCertificateConfiguration | None:
        """gRPC asks at each handshake, in a thread of its own. None: nothing has changed."""
        now = self._files.get()
        if now is self._told:
            return None
        self._told = now
        return _configuration(now)

    def _context(self) -> ssl.SSLContext:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.minimum_version = ssl.TLSVersion.TLSv1_2
        context.load_cert_chain(self._chain, self._key)
        if self._client_ca is not None:
            context.verify_mode = ssl.CERT_REQUIRED
            # who resumes an earlier connection is not looked at again, also when its CA is no longer one
            context.options |= ssl.OP_NO_TICKET
            context.num_tickets = 0
            context.load_verify_locations(self._client_ca)
        return context

    def _read(self) -> _Read:
        try:
            context = self._context()  # which says whether they fit together
            client_ca = None if self._client_ca is None else self._client_ca.read_bytes()
            return _Read(self._chain.read_bytes(), self._key.read_bytes(), client_ca, context)
        except ssl.SSLError as error:
            files = ", ".join(str(path) for path in (self._chain, self._key, self._client_ca) if path is not None)
            why = error.reason or "no PEM"
            raise ValueError(f"{files}: no certificate and key, in PEM, that fit together ({why})") from None


def _configuration(read: _Read) -> grpc.ServerCertificateConfiguration:
    return grpc.ssl_server_certificate_configuration([(read.key, read.chain)], root_certificates=read.client_ca)
