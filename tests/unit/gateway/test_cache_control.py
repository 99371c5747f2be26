"""The directives of HTTP that mean something here."""

import pytest
from worldtree_gateway.cache_control import USUAL, CacheControl, read
from worldtree_gateway.errors import BadCacheControl


@pytest.mark.parametrize(
    ("value", "control"),
    [
        ("no-store", CacheControl(store=False)),
        ("no-cache", CacheControl(age_max_s=0.0)),
        ("No-Cache", CacheControl(age_max_s=0.0)),
        ("max-age=0", CacheControl(age_max_s=0.0)),
        ("max-age=60", CacheControl(age_max_s=60.0)),
        (' max-age = "60" ', CacheControl(age_max_s=60.0)),
        ("max-age=60, no-cache", CacheControl(age_max_s=0.0)),
        ("no-cache,max-age=60", CacheControl(age_max_s=0.0)),
        ("no-store, max-age=5", CacheControl(store=False, age_max_s=5.0)),
        ("private, immutable=1,,", USUAL),
        ("", USUAL),
    ],
)
def test_a_value_is_read(value: str, control: CacheControl) -> None:
    assert read((("x", "no-store"), ("cache-control", value))) == control


def test_several_values_add_up() -> None:
    both = read((("cache-control", "no-store"), ("cache-control", "max-age=9")))
    assert both == CacheControl(store=False, age_max_s=9.0)


def test_none_is_usual() -> None:
    assert read(()) == USUAL


@pytest.mark.parametrize("value", ["max-age", "max-age=", "max-age=-1", "max-age=1.5", "max-age=soon", "max-age=²"])
def test_an_age_that_is_no_number_is_refused(value: str) -> None:
    with pytest.raises(BadCacheControl, match="whole number"):
        read((("cache-control", value),))
