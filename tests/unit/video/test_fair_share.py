"""Whose turn it is among tenants."""

from collections import Counter

import pytest
from worldtree_video.fair_share import FairShare


def serve(
    shares: FairShare, waiting: dict[str, list[str]], ticks: int, *, limit: int, cost_s: dict[str, float]
) -> Counter[str]:
    """Members by tenant over some ticks in which everybody always waits."""
    served: Counter[str] = Counter()
    for _ in range(ticks):
        for item in shares.pick(waiting, limit, 1.0):
            served[item] += 1
            shares.charge(item, cost_s[item])
    return served


@pytest.mark.parametrize("limit", [1, 2, 3, 8])
def test_tenants_get_equal_shares_however_much_each_asks_for(limit: int) -> None:
    waiting = {"a": ["a"] * 100, "b": ["b"] * 8, "c": ["c"] * 30}
    served = serve(FairShare(), waiting, 120, limit=limit, cost_s=dict.fromkeys("abc", 1.0))
    assert max(served.values()) - min(served.values()) <= limit


def test_a_tenant_whose_chunks_cost_more_gets_fewer_of_them() -> None:
    served = serve(
        FairShare(), {"dear": ["dear"] * 4, "cheap": ["cheap"] * 4}, 300, limit=1, cost_s={"dear": 3.0, "cheap": 1.0}
    )
    assert served["cheap"] == pytest.approx(3 * served["dear"], rel=0.03)


def test_one_who_comes_late_or_comes_back_has_saved_nothing_up() -> None:
    shares = FairShare()
    cost = {"old": 1.0, "new": 1.0}
    serve(shares, {"old": ["old"]}, 1000, limit=1, cost_s=cost)
    both = {"old": ["old"], "new": ["new"]}
    for _ in range(2):
        served = serve(shares, both, 20, limit=1, cost_s=cost)
        assert abs(served["old"] - served["new"]) <= 2
        serve(shares, {"old": ["old"]}, 500, limit=1, cost_s=cost)  # new is away


def test_what_a_tenant_leaves_goes_to_the_others_and_each_keeps_its_order() -> None:
    chosen = FairShare().pick({"a": ["a1"], "b": ["b1", "b2", "b3", "b4"]}, 4, 1.0)
    assert sorted(chosen) == ["a1", "b1", "b2", "b3"]
    assert [item for item in chosen if item[0] == "b"] == ["b1", "b2", "b3"]


def test_shares_tell_chunks_and_who_waits() -> None:
    shares = FairShare()
    shares.pick({"a": [1, 2, 3], "b": [1]}, 1, 1.0)
    shares.made("a")
    shares.pick({"a": [1]}, 1, 1.0)
    assert [(share.tenant, share.chunk_count, share.waiting_count) for share in shares.shares()] == [
        ("a", 1, 1),
        ("b", 0, 0),
    ]


def test_invented_tenants_do_not_pile_up() -> None:
    shares = FairShare()
    for number in range(2000):
        shares.pick({f"t{number}": [1], "real": [1]}, 2, 1.0)
        shares.charge("real", 1.0)
    assert len(shares.shares()) <= 256
    assert "real" in [share.tenant for share in shares.shares()]
