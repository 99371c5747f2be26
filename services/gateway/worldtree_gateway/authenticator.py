"""From what a caller shows to who it is."""

from collections.abc import Iterable
from typing import Any

from worldtree_gateway.api_key import PREFIX, PresentedKey
from worldtree_gateway.errors import CredentialsMissing, CredentialsUnreadable, NotOffered
from worldtree_gateway.identity import Caller
from worldtree_gateway.key_ring import KeyRing
from worldtree_gateway.tokens import TokenVerifier

AUTHORIZATION_KEY = "authorization"
API_KEY_KEY = "x-api-key"
CREDENTIALS = (AUTHORIZATION_KEY, API_KEY_KEY)
# What clients write before a key or a token: openpi's own says "Api-Key".
_SCHEMES = ("bearer", "api-key")


class Authenticator:
    """`keys` and `tokens`: None where the gateway was given none of them."""

    def __init__(self, keys: KeyRing | None, tokens: TokenVerifier | None) -> None:
        self._keys = keys
        self._tokens = tokens

    def recognize(self, metadata: Iterable[tuple[str, Any]]) -> Caller | None:
        """As `identify`, but None for an API key that is yet to be verified, which takes a while."""
        credential = _credential(metadata)
        if credential.startswith(PREFIX):
            keys, presented = self._presented(credential)
            return keys.recognize(presented)
        if credential.count(".") == 2:
            if self._tokens is None:
                raise NotOffered("JSON Web Tokens", "gateway.jwks_file")
            return self._tokens.find(credential)
        raise CredentialsUnreadable("they are neither an API key (wt_...) nor a JSON Web Token")

    async def identify(self, metadata: Iterable[tuple[str, Any]]) -> Caller:
        """Whoever shows the credentials in `metadata` (or in headers, their names in lower case).

        Raises Unauthenticated, Unavailable or Exhausted. No message repeats what was shown, but for a key's public id.
        """
        caller = self.recognize(metadata)
        if caller is not None:
            return caller
        keys, presented = self._presented(_credential(metadata))
        return await keys.find(presented)

    def _presented(self, credential: str) -> tuple[KeyRing, PresentedKey]:
        if self._keys is None:
            raise NotOffered("API keys", "gateway.keys_file")
        presented = PresentedKey.parse(credential)
        if presented is None:
            raise CredentialsUnreadable("an API key is wt_, 8 hexadecimal digits, _ and 43 characters")
        return self._keys, presented

    def close(self) -> None:
        if self._keys is not None:
            self._keys.close()


def _credential(metadata: Iterable[tuple[str, Any]]) -> str:
    shown = [(key, value) for key, value in metadata if key in CREDENTIALS]
    if not shown:
        raise CredentialsMissing
    if len(shown) > 1:
        # two who read different ones would see two callers in one call
        raise CredentialsUnreadable(f"they are to be shown once, got {len(shown)}")
    key, value = shown[0]
    text = value.decode("latin-1") if isinstance(value, bytes) else value
    if key == API_KEY_KEY:
        return text.strip()
    scheme, _, credential = text.partition(" ")
    if scheme.lower() not in _SCHEMES or not credential.strip():
        raise CredentialsUnreadable("authorization is to be Bearer and a key or a token")
    return credential.strip()
