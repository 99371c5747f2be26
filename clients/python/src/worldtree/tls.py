"""How a connection is encrypted, where more is to be said than yes or which CA."""

from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias


@dataclass(frozen=True, slots=True)
class Tls:
    """`ca_file`: the CAs that are trusted (None: the system's). `cert_file` and `key_file`: the client's certificate
    chain and its private key, for servers that ask for one. All are PEM files.
    """

    ca_file: str | Path | None = None
    cert_file: str | Path | None = None
    key_file: str | Path | None = None


# True: encrypted, trusting the system's CAs. A path: trusting those of that file. False: in clear text.
TlsLike: TypeAlias = bool | str | Path | Tls
