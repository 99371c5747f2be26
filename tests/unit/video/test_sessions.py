"""Names, leases and claims."""

import re

import pytest
from worldtree_video.branch import Branch
from worldtree_video.domain import KvPolicy, Origin, PolicyKind
from worldtree_video.errors import SessionBusy, SessionClosed, SessionNotFound
from worldtree_video.kv_cache import BlockPool, BlockTable
from worldtree_video.sessions import Claim, Session, Sessions


class Replica:
    """Sessions on a clock that a test moves."""

    def __init__(self) -> None:
        self.pool = BlockPool(16)
        self.sessions = Sessions("video-a1")

    def open(self, *, now_s: float = 0.0, ttl_s: float = 10.0) -> Session:
        branch = Branch(Origin((b"start",), ()), b"root", 7, 1, BlockTable(self.pool, KvPolicy(PolicyKind.SLIDING, 4)))
        block = self.pool.allocate()
        assert block is not None
        branch.append(branch.given_record(), block)
        return self.sessions.add(branch, ttl_s=ttl_s, now_s=now_s)


def ignore(error: Exception) -> None:
    del error


def test_a_name_is_dns_safe_names_its_home_and_is_never_given_twice() -> None:
    replica = Replica()
    names = {replica.open().name for _ in range(16)}
    assert len(names) == len(replica.sessions) == 16
    assert all(re.fullmatch(r"[a-z0-9]{20}\.video-a1", name) for name in names)


def test_touching_a_session_renews_its_lease() -> None:
    replica = Replica()
    session = replica.open()
    assert session.expires_s == 10
    assert replica.sessions.get(session.name, 7.0) is session
    assert session.expires_s == 17
    replica.sessions.touch(session, 8.0, 100.0)
    assert session.expires_s == 108
    replica.sessions.get(session.name, 9.0)
    assert session.expires_s == 109  # the longer lease stays


def test_idle_sessions_expire_and_used_ones_do_not() -> None:
    replica = Replica()
    idle, claimed, read, fresh = replica.open(), replica.open(), replica.open(), replica.open(now_s=5)
    replica.sessions.claim(claimed, Claim("Step", ignore))
    read.readers.add(ignore)
    assert replica.sessions.expired(9.9) == []
    assert replica.sessions.expired(10.0) == [idle]
    replica.sessions.release(claimed, 12.0)
    read.readers.discard(ignore)
    assert set(replica.sessions.expired(15.0)) == {idle, read, fresh}
    assert claimed in replica.sessions.expired(22.0)


def test_one_call_at_a_time_may_move_a_session_and_the_other_learns_which() -> None:
    replica = Replica()
    session = replica.open()
    replica.sessions.claim(session, Claim("Play", ignore))
    with pytest.raises(SessionBusy, match="busy with a Play") as caught:
        replica.sessions.claim(session, Claim("Step", ignore))
    assert caught.value.metadata == {"session": session.name}
    assert replica.sessions.busy_count == 1
    replica.sessions.release(session, 1.0)
    replica.sessions.claim(session, Claim("Step", ignore))


def test_closing_a_session_ends_its_calls_and_gives_back_its_blocks() -> None:
    replica = Replica()
    session = replica.open()
    ended: list[Exception] = []
    replica.sessions.claim(session, Claim("Step", ended.append))
    session.readers.add(ended.append)
    assert replica.sessions.remove(session) == 1
    assert [type(error) for error in ended] == [SessionClosed, SessionClosed]
    assert session.name in str(ended[0])
    replica.pool.check_integrity()
    assert replica.pool.free_count == 16
    with pytest.raises(SessionNotFound):
        replica.sessions.get(session.name, 1.0)
    with pytest.raises(SessionNotFound):
        replica.sessions.claim(session, Claim("Step", ignore))
    assert session.name not in replica.sessions


def test_a_call_has_ended_before_the_blocks_it_uses_are_given_back() -> None:
    replica = Replica()
    session = replica.open()
    held: list[int] = []
    replica.sessions.claim(session, Claim("Play", lambda error: held.append(replica.pool.held_count)))
    replica.sessions.remove(session)
    assert held == [1]


def test_the_session_that_was_left_alone_longest_comes_first_whatever_its_lease() -> None:
    replica = Replica()
    first, second, third = replica.open(ttl_s=1000), replica.open(now_s=1), replica.open(now_s=2, ttl_s=0.5)
    replica.sessions.touch(second, 3.0)
    assert list(replica.sessions.holding(replica.pool)) == [first, third, second]
