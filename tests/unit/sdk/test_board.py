"""The page of `worldtree top`, for terminals of every size."""

import re
from datetime import UTC, datetime, timedelta

import pytest
from rich.console import Console
from worldtree import ModelStatus, PlayStatus, ReplicaStatus, SessionStatus, Sharing, Tick, Tier, Unavailable
from worldtree.cli.board import Reading, page, trouble
from worldtree.cli.gauges import Room
from worldtree.convert import session_from_pb
from worldtree.video.v1 import video_generator_pb2 as pb

NOW = datetime(2026, 1, 2, 3, 4, 5, tzinfo=UTC)


def session(index: int) -> SessionStatus:
    message = pb.Session(session=f"s{index}.video-1", state=pb.Session.STATE_IDLE, block_count=9, journaled=True)
    message.expire_time.FromDatetime(NOW + timedelta(seconds=61))
    return SessionStatus(
        session_from_pb(message), tenant="ann", call=None, sharing=(Sharing("s0.video-1", 4),), journal_behind_count=2
    )


def reading(*, sessions: int = 30, plays: int = 2, ticks: int = 64, replica: str = "video-1") -> Reading:
    model = ModelStatus(
        name="minigrid",
        version="1",
        digest="d",
        tiers=(
            Tier("pool", "int8", 512, 100, 20, 4, 30, 2**20, 2**22),
            Tier("host", None, 0, 0, 40, 0, 0, 64 * 2**20, 256 * 2**20),
            Tier("redis", None, 0, 0, 700, 0, 0, 2**30, 0),
        ),
        session_count=sessions + 5,
        sessions=tuple(session(index) for index in range(sessions)),
        plays=tuple(PlayStatus(f"s{index}.video-1", 5.0, -0.012, 40, 3, 1) for index in range(plays)),
        ticks=tuple(Tick(NOW - timedelta(seconds=4), 0.012, 1, 0, 6, 2) for _ in range(ticks)),
        tenants=(),
        prefix_hit_count=12,
        play_load=0.5,
        max_batch_size=16,
    )
    return Reading(replica, ReplicaStatus(replica, NOW, 90.0, draining=False, models=(model,)))


def lines_of(readings: list[Reading], *, columns: int, rows: int | None = None) -> list[str]:
    console = Console(width=columns, height=1000, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(page(readings, title="worldtree top", room=Room(columns, rows)))
    return console.export_text().splitlines()


@pytest.mark.parametrize("columns", [20, 40, 60, 80, 110, 200])
@pytest.mark.parametrize("rows", [18, 24, 50])
@pytest.mark.parametrize(("sessions", "plays"), [(30, 2), (30, 30), (1, 30), (0, 0)])
def test_a_page_fits_its_terminal(columns: int, rows: int, sessions: int, plays: int) -> None:
    lines = lines_of([reading(sessions=sessions, plays=plays)], columns=columns, rows=rows)
    assert max(map(len, lines)) <= columns
    # The gauges, and three rows of each table, are never left out, however low the terminal.
    assert len(lines) <= max(rows, 21)


@pytest.mark.parametrize("columns", [30, 80, 200])
def test_a_page_with_replicas_that_are_down_fits_its_terminal(columns: int) -> None:
    error = Unavailable('video replica "video-2" does not answer; try again in 1 s', reason="BACKEND_DOWN")
    down = [Reading(f"video-{number}", error=error) for number in (2, 3)]
    lines = lines_of([reading(), *down], columns=columns, rows=50)
    assert 48 <= len(lines) <= 50
    assert sum("does not answer" in line for line in lines) >= 2


def test_what_short_tables_leave_over_is_for_the_long_ones() -> None:
    lines = lines_of([reading(plays=1)], columns=120, rows=40)
    assert len(lines) >= 39
    shown = sum("ann" in line for line in lines)
    assert shown >= 20
    assert lines[-1].strip() == f"and {35 - shown} more sessions"


def test_all_of_it_without_a_limit() -> None:
    lines = lines_of([reading()], columns=120)
    assert sum("video-1" in line and "ann" in line for line in lines) == 30
    assert lines[-1].strip() == "and 5 more sessions"  # which the server did not list


def test_what_each_line_says() -> None:
    text = "\n".join(lines_of([reading(sessions=1, plays=1)], columns=120))
    assert "video-1 up 1 min 30 s" in text
    assert "minigrid/1  6 sessions (1 idle of 1 looked at) · 12 chunks from known blocks" in text
    assert "388 of 512 free · █ 100 held (30 shared) ▓ 4 in flight ▒ 20 cached · 1 MiB" in text
    # Below the pools it is bytes that are limited, and nobody holds a copy.
    assert re.search(r"host       ▒{8}·{24}  ▒ 40 cached · 64 MiB of 256 MiB\s*$", text, re.MULTILINE)
    assert re.search(r"redis      ▒{32}  ▒ 700 cached · 1 GiB\s*$", text, re.MULTILINE)
    assert "50 % of the engine promised to 1 play" in text
    assert "12.0 ms in the median · 7.0 of 16 members · 2.0 commits · the last 4 s ago" in text
    assert "-12 ms" in text
    for word in ("2 behind", "1 min 01 s", "s0:4"):
        assert word in text


def test_a_replica_that_says_nothing_and_one_without_ticks() -> None:
    lost = Reading("video-2", error=Unavailable("nobody there", reason="CONNECTION_FAILED"))
    text = "\n".join(lines_of([reading(ticks=0, sessions=0, plays=0), lost], columns=200))
    assert "ticks      none yet" in text
    assert "video-2 does not answer" in text
    assert "nobody there" in text


def test_names_with_brackets_are_shown_as_they_are() -> None:
    assert "[bold] up 1 min 30 s" in "\n".join(lines_of([reading(replica="[bold]")], columns=80))


def test_trouble_says_what_it_does_about_it() -> None:
    console = Console(width=60, record=True, file=open("/dev/null", "w"))  # noqa: SIM115
    console.print(trouble(Unavailable("nobody there"), title="worldtree top", interval_s=2.0))
    assert "trying again every 2 s" in console.export_text()
