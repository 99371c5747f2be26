"""What slow readers hold is counted once, and only where the cache does not hold it anyway."""

from worldtree_gateway.answers import Answer
from worldtree_gateway.cache import AnswerCache
from worldtree_gateway.replays import Replays


def answer() -> Answer:
    return Answer((bytes(100),), 1000.0, 2000.0)


def cache(answer_count: int) -> AnswerCache:
    return AnswerCache(answer_count * answer().byte_count, clock=lambda: 1000.0)


def test_what_the_cache_holds_takes_no_room_until_it_lets_it_go() -> None:
    kept, read = cache(1), answer()
    replays = Replays(kept, 0)
    kept.put(b"a", read)
    with replays.reading(b"a", read):
        assert replays.held_bytes == 0
        kept.put(b"a", answer())  # a newer one
        assert replays.held_bytes == read.byte_count
        assert not replays.has_room
    assert replays.has_room


def test_an_answer_counts_once_however_many_read_it_until_the_last_has_it() -> None:
    replays, read = Replays(cache(0), 0), answer()
    with replays.reading(b"a", read):
        with replays.reading(b"a", read):
            assert replays.held_bytes == read.byte_count
        assert replays.held_bytes == read.byte_count
        with replays.reading(b"a", answer()):
            assert replays.held_bytes == 2 * read.byte_count, "what was looked up twice is there twice"
    assert replays.held_bytes == 0


def test_there_is_room_for_one_more_until_the_limit_is_passed() -> None:
    replays, read = Replays(cache(0), answer().byte_count), answer()
    with replays.reading(b"a", read):
        assert replays.has_room
        with replays.reading(b"b", answer()):
            assert not replays.has_room
    assert replays.held_bytes == 0
