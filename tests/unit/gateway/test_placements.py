"""Who takes on a session is the same at every gateway, even, and stable; what is remembered is bounded."""

from collections import Counter

from worldtree_gateway.placements import Placements, chosen

SESSIONS = [f"s{number}.a" for number in range(3000)]


def test_all_who_see_the_same_replicas_choose_the_same_in_whatever_order() -> None:
    for session in SESSIONS[:100]:
        assert chosen(session, ["b", "c", "d"]) == chosen(session, ["d", "b", "c"])


def test_a_dead_replicas_sessions_spread_over_the_others() -> None:
    counts = Counter(chosen(session, ["b", "c", "d"]) for session in SESSIONS)
    assert all(850 < count < 1150 for count in counts.values()), counts


def test_a_replica_that_leaves_moves_only_its_own() -> None:
    for session in SESSIONS:
        before = chosen(session, ["b", "c", "d"])
        if before != "d":
            assert chosen(session, ["b", "c"]) == before


def test_the_longest_unused_is_forgotten_first() -> None:
    placements = Placements(2)
    placements.put("s1", "a")
    placements.put("s2", "b")
    assert placements.get("s1") == "a"
    placements.put("s3", "c")
    assert [placements.get(each) for each in ("s1", "s2", "s3")] == ["a", None, "c"]
    placements.forget("s1")
    placements.forget("s1")
    assert placements.get("s1") is None
    assert len(placements) == 1
