"""Keys, tokens and certificates, made anew for a test."""

import datetime
import ipaddress
import json
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import jwt
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import NameOID
from worldtree_gateway.api_key import KnownKey, new_key
from worldtree_gateway.identity import Role

ISSUER, AUDIENCE = "https://issuer.example", "worldtree"


class KeysFile:
    """The keys of a gateway, and the file that they are in."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._known: dict[str, KnownKey] = {}
        self.write()

    def add(self, tenant: str, role: Role = Role.USER) -> str:
        text, known = new_key(tenant, role)
        self._known[text] = known
        self.write()
        return text

    def revoke(self, text: str) -> None:
        del self._known[text]
        self.write()

    def line(self, text: str) -> str:
        return self._known[text].line

    def write(self) -> None:
        self.path.write_text("# keys of a test\n" + "".join(f"{known.line}\n" for known in self._known.values()))


def bearer(credential: str) -> tuple[tuple[str, str], ...]:
    return (("authorization", f"Bearer {credential}"),)


class Issuer:
    """Makes tokens, and the JWKS of their keys: RSA by default; `ec` too."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.rsa = rsa.generate_private_key(public_exponent=65537, key_size=2048)
        self.ec = ec.generate_private_key(ec.SECP256R1())
        self.write(rsa=self.rsa, ec=self.ec)

    def write(self, **keys: Any) -> None:
        entries = []
        for kid, key in keys.items():
            algorithm: Any = jwt.algorithms.RSAAlgorithm if kid.startswith("rsa") else jwt.algorithms.ECAlgorithm
            entries.append({**json.loads(algorithm.to_jwk(key.public_key())), "kid": kid, "use": "sig"})
        self.path.write_text(json.dumps({"keys": entries}))

    def public_pem(self) -> bytes:
        return self.rsa.public_key().public_bytes(
            serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo
        )

    def token(self, *, key: Any = None, algorithm: str = "RS256", kid: str | None = "rsa", **claims: Any) -> str:
        """A good one, but for what the arguments say; a claim of None is left out."""
        now_s = int(time.time())
        known = {"iss": ISSUER, "aud": AUDIENCE, "sub": "ann", "tenant": "acme", "iat": now_s, "exp": now_s + 300}
        said = {name: value for name, value in {**known, **claims}.items() if value is not None}
        headers = {} if kid is None else {"kid": kid}
        return jwt.encode(said, self.rsa if key is None else key, algorithm=algorithm, headers=headers)


@dataclass(frozen=True)
class Pair:
    """A certificate and its key, as PEM files."""

    chain: Path
    key: Path


class Authority:
    """A CA of its own, which gives out certificates for loopback."""

    def __init__(self, folder: Path, name: str = "ca") -> None:
        self._folder, self._name = folder, name
        self._key = ec.generate_private_key(ec.SECP256R1())
        self._subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{name} of a test")])
        builder = _builder(self._subject, self._subject, self._key)
        self._certificate = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True).sign(
            self._key, hashes.SHA256()
        )
        self.path = folder / f"{name}.pem"
        self.path.write_bytes(self._certificate.public_bytes(serialization.Encoding.PEM))

    def issue(self, name: str) -> Pair:
        """Writes NAME.crt and NAME.key, over what is there."""
        key = ec.generate_private_key(ec.SECP256R1())
        subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)])
        names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
        certificate = (
            _builder(subject, self._subject, key)
            .add_extension(x509.SubjectAlternativeName(names), critical=False)
            .sign(self._key, hashes.SHA256())
        )
        pair = Pair(self._folder / f"{name}.crt", self._folder / f"{name}.key")
        pair.chain.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
        pair.key.write_bytes(
            key.private_bytes(
                serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
            )
        )
        return pair


def _builder(subject: x509.Name, issuer: x509.Name, key: Any) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )
