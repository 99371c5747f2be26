"""Worlds that begin alike share a replica, and no replica has more than its share of all there is to do."""

from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st
from worldtree.common.v1 import common_pb2
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_gateway.balancing import by_start, emptiest, least_loaded, start_of
from worldtree_gateway.domain import SERVICES
from worldtree_gateway.load import Load

METHODS = {path.rpartition("/")[2]: method for service in SERVICES for path, method in service.methods.items()}


@dataclass
class Replica:
    name: str
    load: int = 0
    share: float = 1.0
    held: int = 0

    @property
    def pressure(self) -> float:
        return self.load / self.share


def replicas(count: int) -> list[Replica]:
    return [Replica(f"video-{number}") for number in range(count)]


def start(request: pb.CreateSessionRequest | pb.GenerateRequest, name: str = "CreateSession") -> bytes | None:
    fields = METHODS[name].start_fields
    assert fields is not None
    return start_of(request.SerializeToString(), *fields)


def create(start: str = "four-rooms", model: str = "minigrid", **fields: object) -> pb.CreateSessionRequest:
    ref = common_pb2.ModelRef(name=model)
    return pb.CreateSessionRequest(model=ref, origin=pb.Origin(start=start), **fields)


def test_which_methods_say_where_a_world_begins_and_which_open_one_is_read_from_the_descriptors() -> None:
    assert {name for name, method in METHODS.items() if method.start_fields} == {"CreateSession", "Generate"}
    assert {name for name, method in METHODS.items() if method.opens_session} == {"CreateSession", "Restore"}


def test_a_start_is_the_same_whatever_comes_after_it() -> None:
    assert start(create()) == start(create(seed=7, nfe=2, request_id="r"))
    pinned = common_pb2.ModelRef(name="minigrid", version="3", digest="d" * 64)
    clip = pb.GenerateRequest(model=pinned, origin=pb.Origin(start="four-rooms"), actions=[pb.Action(id=1)], seed=9)
    assert start(create()) == start(clip, "Generate")


def test_another_start_or_another_model_is_another() -> None:
    frames = pb.Origin(frames=common_pb2.Frames(tensor=common_pb2.Tensor(data=b"\1" * 100_000)))
    others = [
        create("maze"),
        create(model="rooms"),
        pb.CreateSessionRequest(origin=pb.Origin(start="four-rooms")),
        pb.CreateSessionRequest(origin=pb.Origin(prompt="four-rooms")),
        pb.CreateSessionRequest(origin=frames),
    ]
    assert len({start(each) for each in (create(), *others)}) == 6
    assert start(pb.CreateSessionRequest(model=common_pb2.ModelRef(name="minigrid"))) is None


@given(st.binary(max_size=300))
def test_no_request_crashes_it(request: bytes) -> None:
    found = start_of(request, 1, 2)
    assert found is None or len(found) == 16


def test_one_start_stays_at_one_replica_until_that_has_its_share_and_comes_back() -> None:
    fleet = replicas(4)
    key = start(create())
    assert key is not None
    placed = []
    for _ in range(400):
        chosen, is_first = by_start(key, fleet, 1.25)
        chosen.load += 1
        placed.append((chosen.name, is_first))
        total = sum(each.load for each in fleet)
        assert max(each.load for each in fleet) <= max(4, 1.25 * total / 4 + 1), "no replica has more than its share"
    first = placed[0][0]
    counts = Counter(name for name, _ in placed)
    assert counts[first] == max(counts.values()) == 125
    assert all((name == first) == is_first for name, is_first in placed)
    next(each for each in fleet if each.name == first).load -= 10
    assert by_start(key, fleet, 1.25)[0].name == first


def test_a_few_worlds_that_begin_alike_stay_together_though_others_have_nothing_to_do() -> None:
    fleet = replicas(8)
    key = start(create())
    assert key is not None
    for _ in range(4):
        by_start(key, fleet, 1.25)[0].load += 1
    assert sorted(each.load for each in fleet) == [0] * 7 + [4]


def test_all_gateways_choose_alike_in_whatever_order_they_know_the_replicas() -> None:
    for number in range(50):
        key = start(create(f"start-{number}"))
        assert key is not None
        assert by_start(key, replicas(5), 1.25)[0].name == by_start(key, replicas(5)[::-1], 1.25)[0].name


def test_many_starts_spread_over_all_replicas() -> None:
    keys = [start(create(f"start-{number}")) for number in range(400)]
    counts = Counter(by_start(key, replicas(4), 1.25)[0].name for key in keys if key is not None)
    assert all(70 < count < 130 for count in counts.values()), counts


def test_a_replica_that_came_gets_a_part_of_its_share_only() -> None:
    fleet = replicas(2)
    fleet[1].share = 0.1
    for number in range(110):
        key = start(create(f"start-{number}"))
        assert key is not None
        by_start(key, fleet, 1.25)[0].load += 1
    assert 5 <= fleet[1].load <= 20
    for each in fleet:
        each.load = 0
    for _ in range(110):
        least_loaded(fleet).load += 1
    assert [each.load for each in fleet] == [100, 10]


def test_one_with_nothing_to_do_is_welcome_however_new_it_is() -> None:
    fleet = replicas(2)
    fleet[0].load, fleet[1].share = 1, 0.1
    assert least_loaded(fleet) is fleet[1]


class Watched:
    """A replica as a gateway sees it whose calls all have ended."""

    def __init__(self, name: str, clock: Callable[[], float]) -> None:
        self.name = name
        self.load = Load(ramp_s=0, clock=clock)

    @property
    def pressure(self) -> float:
        return self.load.pressure(0)

    @property
    def held(self) -> int:
        return self.load.held


def test_sessions_that_are_opened_slowly_and_begin_alike_fill_no_replica_before_the_others() -> None:
    now_s = 0.0
    fleet = [Watched(f"video-{number}", lambda: now_s) for number in range(4)]
    key = start(create())
    assert key is not None
    for count in range(200):
        by_start(key, fleet, 1.25)[0].load.opened()
        now_s += 11
        assert max(each.held for each in fleet) <= max(16, 1.25 * count / 4 + 2)
    assert sorted(each.held for each in fleet)[-1] <= 63
    first = by_start(key, fleet, 1.25)[0]
    first.load.came()
    assert by_start(key, fleet, 1.25)[0] is first, "one that came anew holds none"
    for each in fleet:
        each.load.held = 0
    for _ in range(40):
        emptiest(fleet).load.opened()
        now_s += 11
    assert [each.held for each in fleet] == [10] * 4
