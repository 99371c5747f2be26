from threading import Thread

import pytest
from worldtree import FailedPrecondition, InvalidRequest, LiveActions
from worldtree.video.v1 import video_generator_pb2 as pb


def controls(heard: list[pb.PlayRequest | None]) -> list[str | None]:
    return [request and request.WhichOneof("control") for request in heard]


def test_what_is_said_before_the_play_waits_for_it_in_order() -> None:
    live = LiveActions()
    live.put("left")
    live.rewind(2)
    heard: list[pb.PlayRequest | None] = []
    live.attach(heard.append)
    live.fork(3)
    live.pause()
    live.resume()
    live.replace(["right", 2])
    live.stop()
    live.close()
    live.close()
    assert controls(heard) == ["act", "rewind", "fork", "pause", "resume", "act", "stop", None]
    replaced = heard[5]
    assert replaced is not None
    assert replaced.act.replace
    assert len(replaced.act.actions) == 2


def test_one_play_only() -> None:
    live = LiveActions()
    live.attach(lambda _: None)
    with pytest.raises(FailedPrecondition, match="already"):
        live.attach(lambda _: None)


def test_a_closed_queue_says_so() -> None:
    live = LiveActions()
    live.close()
    with pytest.raises(FailedPrecondition):
        live.put("left")


def test_wrong_counts_are_refused_where_they_are_made() -> None:
    live = LiveActions()
    for wrong in (live.rewind, live.fork):
        with pytest.raises(InvalidRequest):
            wrong(0)
    with pytest.raises(InvalidRequest):
        live.put(None)


def test_many_threads_lose_nothing_while_the_play_attaches() -> None:
    live = LiveActions()
    threads = [Thread(target=lambda: [live.put("left") for _ in range(200)]) for _ in range(4)]
    for thread in threads:
        thread.start()
    heard: list[pb.PlayRequest | None] = []
    live.attach(heard.append)
    for thread in threads:
        thread.join()
    assert len(heard) == 800
