"""Sequences: whose turn it is, how many there may be, and which are given up. A clock that tests set; no service."""

import asyncio

import pytest
from worldtree_gateway.oip_sequences import Key, Sequence, Sequences
from worldtree_runtime.errors import Aborted, Exhausted, FailedPrecondition

KEY = Key("anyone", "tiny", 7)
CALL = object()


class Clock:
    def __init__(self) -> None:
        self.now_s = 100.0

    def __call__(self) -> float:
        return self.now_s


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def sequences(clock: Clock) -> Sequences:
    return Sequences(limit=2, idle_s=10.0, clock=clock)


async def start(sequences: Sequences, key: Key = KEY, session: str = "one") -> Sequence:
    async with sequences.turn(key, start=True, call=CALL) as sequence:
        sequence.session = session
    return sequence


async def test_what_was_started_is_found_until_it_has_no_session(sequences: Sequences) -> None:
    started = await start(sequences)
    async with sequences.turn(KEY, start=False, call=CALL) as found:
        assert found is started
        found.session = ""
    assert len(sequences) == 0
    with pytest.raises(FailedPrecondition, match='"7" of model tiny'):
        async with sequences.turn(KEY, start=False, call=CALL):
            pass


async def test_a_start_that_fails_leaves_nothing(sequences: Sequences) -> None:
    with pytest.raises(ZeroDivisionError):
        async with sequences.turn(KEY, start=True, call=CALL):
            raise ZeroDivisionError
    assert len(sequences) == 0


@pytest.mark.parametrize(
    "other", [Key("another", "tiny", 7), Key("anyone", "other", 7), Key("anyone", "tiny", "7")], ids=str
)
async def test_a_sequence_is_one_caller_s_of_one_model_by_one_id(sequences: Sequences, other: Key) -> None:
    await start(sequences)
    with pytest.raises(FailedPrecondition):
        async with sequences.turn(other, start=False, call=CALL):
            pass
    assert await start(sequences, other, "two") is not await start(sequences)


async def test_requests_take_turns_in_the_order_that_they_came(sequences: Sequences) -> None:
    order: list[int] = []

    async def ask(number: int) -> None:
        async with sequences.turn(KEY, start=number == 0, call=CALL) as sequence:
            sequence.session = "one"
            await asyncio.sleep(0)
            order.append(number)

    await asyncio.gather(*(ask(number) for number in range(8)))
    assert order == list(range(8))


async def test_who_waited_for_one_that_ended_is_told(sequences: Sequences) -> None:
    await start(sequences)

    async def end() -> None:
        async with sequences.turn(KEY, start=False, call=CALL) as sequence:
            await asyncio.sleep(0)
            sequence.session = ""

    async def go_on() -> None:
        async with sequences.turn(KEY, start=False, call=CALL):
            raise AssertionError("it has ended")

    ended, refused = await asyncio.gather(end(), go_on(), return_exceptions=True)
    assert ended is None
    assert isinstance(refused, FailedPrecondition)
    assert len(sequences) == 0


async def test_one_that_ended_may_be_started_by_who_waited(sequences: Sequences) -> None:
    await start(sequences)

    async def end() -> None:
        async with sequences.turn(KEY, start=False, call=CALL) as sequence:
            await asyncio.sleep(0)
            sequence.session = ""

    await asyncio.gather(end(), start(sequences, session="two"))
    async with sequences.turn(KEY, start=False, call=CALL) as sequence:
        assert sequence.session == "two"


async def test_so_many_and_no_more(sequences: Sequences) -> None:
    await start(sequences, Key("anyone", "tiny", 1))
    await start(sequences, Key("anyone", "tiny", 2))
    with pytest.raises(Exhausted, match="2 sequences"):
        await start(sequences, Key("anyone", "tiny", 3))
    await start(sequences, Key("anyone", "tiny", 2))  # one that is there may be started again
    async with sequences.turn(Key("anyone", "tiny", 1), start=False, call=CALL) as sequence:
        sequence.session = ""
    await start(sequences, Key("anyone", "tiny", 3))


async def test_one_that_nobody_asks_for_too_long_is_given_up(sequences: Sequences, clock: Clock) -> None:
    started = await start(sequences)
    clock.now_s += 9.9
    assert sequences.expired() == []
    async with sequences.turn(KEY, start=False, call=CALL):
        clock.now_s += 30  # however long a request takes
        assert sequences.expired() == []
    clock.now_s += 9.9
    assert sequences.expired() == []
    clock.now_s += 0.1
    assert sequences.expired() == [started]
    assert len(sequences) == 0
    with pytest.raises(FailedPrecondition):
        async with sequences.turn(KEY, start=False, call=CALL):
            pass


async def test_one_that_is_cancelled_while_it_waits_is_not_in_the_way(sequences: Sequences, clock: Clock) -> None:
    await start(sequences)

    async def wait() -> None:
        async with sequences.turn(KEY, start=False, call=CALL):
            raise AssertionError("it was cancelled before its turn")

    async with sequences.turn(KEY, start=False, call=CALL):
        waiting = asyncio.create_task(wait())
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
    clock.now_s += 10
    assert len(sequences.expired()) == 1


async def test_all_are_taken_out_at_the_end(sequences: Sequences) -> None:
    started = [await start(sequences, Key("anyone", "tiny", number), f"s{number}") for number in (1, 2)]
    assert sequences.all() == started
    assert len(sequences) == 0


async def test_another_call_s_request_waits_for_its_turn_but_not_for_ever() -> None:
    sequences = Sequences(limit=2, idle_s=0.05)
    await start(sequences)

    async def ask(call: object) -> str:
        async with sequences.turn(KEY, start=False, call=call) as sequence:
            return sequence.session

    async with sequences.turn(KEY, start=False, call=CALL):
        own, other = asyncio.create_task(ask(CALL)), asyncio.create_task(ask(object()))
        with pytest.raises(Aborted, match="busy"):
            await other
        assert not own.done()
    assert await own == "one"
    assert await ask(object()) == "one"
    assert len(sequences) == 1
