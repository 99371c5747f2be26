"""What is late is known from what the last calls took."""

from worldtree_gateway.hedging import Latencies


def test_what_is_late_is_not_known_before_some_have_come() -> None:
    latencies = Latencies()
    for _ in range(31):
        latencies.took(1.0)
    assert latencies.late_s is None
    latencies.took(1.0)
    assert latencies.late_s == 1.0


def test_one_in_twenty_is_late() -> None:
    latencies = Latencies()
    for number in range(256):
        latencies.took(float(number % 100))
    assert 92 <= (latencies.late_s or 0) <= 97


def test_what_was_long_ago_is_forgotten() -> None:
    latencies = Latencies()
    for seconds in (9.0, 1.0):
        for _ in range(320):
            latencies.took(seconds)
    assert latencies.late_s == 1.0
