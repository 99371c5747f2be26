"""What a caller says about cached answers, in the words of HTTP."""

from collections.abc import Iterable
from dataclasses import dataclass

from worldtree_gateway.errors import BadCacheControl

CACHE_CONTROL_KEY = "cache-control"


@dataclass(frozen=True, slots=True)
class CacheControl:
    """`age_max_s` is the oldest answer that is welcome (0: none but a new one). `store`: may it be read or kept."""

    store: bool = True
    age_max_s: float | None = None


USUAL = CacheControl()


def read(metadata: Iterable[tuple[str, str | bytes]]) -> CacheControl:
    """Raises BadCacheControl for a max-age that is no number. Unknown directives are ignored, as HTTP asks."""
    control = USUAL
    for key, value in metadata:
        if key == CACHE_CONTROL_KEY:
            control = _read(control, value if isinstance(value, str) else value.decode("latin-1"))
    return control


def _read(control: CacheControl, value: str) -> CacheControl:
    store, age_max_s = control.store, control.age_max_s
    for directive in value.lower().split(","):
        name, _, argument = directive.strip().partition("=")
        match name.strip():
            case "no-store":
                store = False
            case "no-cache":
                age_max_s = 0.0
            case "max-age":
                seconds = argument.strip().strip('"')
                if not (seconds.isascii() and seconds.isdigit() and len(seconds) <= 10):
                    raise BadCacheControl(directive.strip()[:100])
                age_max_s = min(float(seconds), age_max_s if age_max_s is not None else float(seconds))
    return CacheControl(store, age_max_s)
