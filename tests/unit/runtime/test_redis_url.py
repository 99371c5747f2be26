"""What an URL says of a Redis."""

import pytest
from worldtree_runtime.redis_url import RedisUrl


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("redis://h", RedisUrl("server", (("h", 6379),), "redis://h:6379/")),
        ("rediss://u:p%40@h:1/2", RedisUrl("server", (("h", 1),), "rediss://u:p%40@h:1/2")),
        ("redis://[::1]:5/0", RedisUrl("server", (("::1", 5),), "redis://[::1]:5/0")),
        ("unix:///run/redis.sock?db=1", RedisUrl("server", (), "unix:///run/redis.sock?db=1")),
        (
            "redis+sentinel://:p@a,b:7/main/3?sentinel_password=q",
            RedisUrl("sentinel", (("a", 26379), ("b", 7)), "redis://:p@a:26379/3", "main", ("", "q")),
        ),
        ("redis+cluster://a:1,b:2", RedisUrl("cluster", (("a", 1), ("b", 2)), "redis://a:1/")),
        (
            "rediss+cluster://a/0?ssl_ca_certs=/etc/ca.pem",
            RedisUrl("cluster", (("a", 6379),), "rediss://a:6379/0?ssl_ca_certs=%2Fetc%2Fca.pem"),
        ),
    ],
)
def test_a_form_is_read(url: str, expected: RedisUrl) -> None:
    assert RedisUrl.parse(url) == expected


@pytest.mark.parametrize(
    "url",
    [
        "h:6379",
        "http://h",
        "redis://",
        "redis://h:99999",
        "redis://:secret/x@h:1/0",
        "redis://a,b/0",
        "redis+sentinel://a:1",
        "redis+sentinel://a:1/",
        "redis+cluster://a:1/5",
        "redis+cluster://a:1,,b:2",
        "redis+other://a",
        "redis://h?ssl_ca_certs=secret.pem",
        "rediss://h?ssl_cert_reqs=none",
        "redis://h?socket_timeout=1",
        "redis+cluster://h?sentinel_password=secret",
    ],
)
def test_what_is_no_form_is_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(ValueError, match="must be redis://HOST:PORT/DB, redis") as caught:
        RedisUrl.parse(url)
    assert "secret" not in str(caught.value)
    assert caught.value.__suppress_context__
