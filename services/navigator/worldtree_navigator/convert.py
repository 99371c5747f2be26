"""Messages to the words of domain.py: pure functions, each refusal naming field, value and limit."""

from collections.abc import Sequence

from worldtree.common.v1 import common_pb2 as common
from worldtree.navigator.v1 import navigator_pb2 as pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_runtime.errors import InvalidRequest, NotFound

from worldtree_navigator.config import NavigatorSettings
from worldtree_navigator.domain import Draw, Edge, Edges, Past, Scene, Search, Terms
from worldtree_navigator.sampling import REPEAT, sample

MAX_SEED = 2**53 - 1
MAX_HALVING = 16.0
DEFAULT_COUNT, DEFAULT_HORIZON, DEFAULT_ROUNDS, DEFAULT_KEEP = 32, 6, 4, 4
PLAN_HORIZON, DEFAULT_ITERATIONS, MAX_ITERATIONS = 8, 3, 16


def number(field: str, value: float, low: float, high: float, *, above: bool = False) -> float:
    """`value`, if it is low (or `above` it) to high."""
    if not (low < value <= high if above else low <= value <= high):
        rule = f"above {low:g} to {high:g}" if above else f"{low:g} to {high:g}"
        raise InvalidRequest(field, f"{field} must be {rule}, got {value:g}", low=low, high=high, value=value)
    return value


def to_budget(field: str, budget: pb.Budget, settings: NavigatorSettings) -> tuple[int, float | None]:
    """Chunks, and seconds where there is an end to them."""
    chunk_limit = int(number(f"{field}.chunk_count", budget.chunk_count, 0, settings.max_chunks))
    time_s = None
    if budget.HasField("duration"):
        duration_s = budget.duration.seconds + budget.duration.nanos / 1e9
        time_s = number(f"{field}.duration", duration_s, 0, 3600, above=True)
    return chunk_limit or settings.max_chunks, time_s


def to_terms(request: pb.ImagineRequest, settings: NavigatorSettings) -> Terms:
    chunk_limit, time_s = to_budget("budget", request.budget, settings)
    stop_at = number("stop_at", request.stop_at, 0.5, 1, above=True) if request.stop_at else None
    return Terms(
        rounds=int(number("rounds", request.rounds, 0, settings.max_horizon)),
        halving=number("halving", request.halving or 2.0, 1, MAX_HALVING),
        keep=int(number("keep", request.keep or DEFAULT_KEEP, 1, settings.max_candidates)),
        stop_at=stop_at,
        chunk_limit=chunk_limit,
        time_s=time_s,
    )


def to_plan_terms(request: pb.PlanRequest, settings: NavigatorSettings) -> Terms:
    """`keep` is the planner's to say."""
    chunk_limit, time_s = to_budget("budget", request.budget, settings)
    return Terms(rounds=0, halving=2.0, keep=1, stop_at=None, chunk_limit=chunk_limit, time_s=time_s)


def to_search(request: pb.PlanRequest, settings: NavigatorSettings) -> Search:
    number("seed", request.seed, 0, MAX_SEED)
    return Search(
        horizon=int(number("horizon", request.horizon or PLAN_HORIZON, 1, settings.max_horizon)),
        candidates=int(number("candidates", request.candidates or DEFAULT_COUNT, 2, settings.max_candidates)),
        iterations=int(number("iterations", request.iterations or DEFAULT_ITERATIONS, 1, MAX_ITERATIONS)),
    )


def to_planner(name: str, known: Sequence[str]) -> str:
    """Raises NotFound."""
    if name and name not in known:
        raise NotFound("planner", name, known=known)
    return name or known[0]


def to_past(request: pb.PlanRequest, settings: NavigatorSettings) -> Past | None:
    """What was seen, in place of a session. Raises InvalidRequest where both or neither is given."""
    if bool(request.session) == request.HasField("past"):
        got = "both" if request.session else "neither"
        raise InvalidRequest("session", f"exactly one of session and past must be set, got {got}")
    if not request.HasField("past"):
        return None
    past, world = request.past, common.ModelRef()
    world.CopyFrom(past.world)
    world.name = world.name or settings.world
    count = len(past.frames.png) or (past.frames.tensor.shape[0] if past.frames.tensor.shape else 0)
    number("past.frames", count, 1, settings.max_past_frames)
    if len(past.actions) != count - 1:
        raise InvalidRequest(
            "past.actions",
            f"past.actions must be one fewer than past.frames, {count - 1}, got {len(past.actions)}",
            limit=count - 1,
        )
    return Past(world, past.frames, past.actions)


def to_allowed(names: Sequence[str], actions: Sequence[str], field: str) -> list[int]:
    """The actions that may be drawn, by id; no names: all."""
    for place, name in enumerate(names):
        if name not in actions:
            raise _unknown(f"{field}[{place}]", name, actions)
    return sorted({actions.index(name) for name in names}) or list(range(len(actions)))


def to_candidates(request: pb.ImagineRequest, settings: NavigatorSettings) -> Draw | Sequence[video_pb.ActionSequence]:
    """What is known of the candidates before their world is."""
    if request.WhichOneof("candidates") == "given":
        sequences = request.given.sequences
        number("given.sequences", len(sequences), 1, settings.max_candidates)
        for place, each in enumerate(sequences):
            number(f"given.sequences[{place}].actions", len(each.actions), 1, settings.max_horizon)
            if each.HasField("seed"):
                number(f"given.sequences[{place}].seed", each.seed, 0, MAX_SEED)
        return sequences
    sampling = request.sampling
    repeat = sampling.repeat if sampling.HasField("repeat") else REPEAT
    if not 0 <= repeat < 1:
        raise InvalidRequest("sampling.repeat", f"sampling.repeat must be 0 to below 1, got {repeat:g}", value=repeat)
    return Draw(
        count=int(number("sampling.count", sampling.count or DEFAULT_COUNT, 1, settings.max_candidates)),
        horizon=int(number("sampling.horizon", sampling.horizon or DEFAULT_HORIZON, 1, settings.max_horizon)),
        seed=int(number("sampling.seed", sampling.seed, 0, MAX_SEED)),
        repeat=repeat,
        actions=tuple(sampling.actions),
    )


def to_sequences(candidates: Draw | Sequence[video_pb.ActionSequence], actions: Sequence[str]) -> list[Edges]:
    """The candidates as sequences of edges, in a world with these actions."""
    ids = {name: index for index, name in enumerate(actions)}
    if isinstance(candidates, Draw):
        allowed = to_allowed(candidates.actions, actions, "sampling.actions")
        drawn = sample(allowed, candidates.count, candidates.horizon, seed=candidates.seed, repeat=candidates.repeat)
        return [tuple(Edge(action) for action in each) for each in drawn]
    return [
        tuple(
            to_edge(
                action, each.seed if each.HasField("seed") else None, ids, f"given.sequences[{row}].actions[{place}]"
            )
            for place, action in enumerate(each.actions)
        )
        for row, each in enumerate(candidates)
    ]


def to_edge(action: video_pb.Action, seed: int | None, ids: dict[str, int], field: str) -> Edge:
    if action.instruction:
        raise InvalidRequest(f"{field}.instruction", f"{field}.instruction must be empty: no world here takes one")
    match action.WhichOneof("kind"):
        case "id":
            return Edge(int(number(f"{field}.id", action.id, 0, len(ids) - 1)), seed)
        case "name":
            if action.name not in ids:
                raise _unknown(f"{field}.name", action.name, list(ids))
            return Edge(ids[action.name], seed)
        case kind:
            raise InvalidRequest(field, f"{field} must be an action by id or name, got {kind or 'nothing'}")


def _unknown(field: str, name: str, actions: Sequence[str]) -> InvalidRequest:
    return InvalidRequest(field, f"{field} must be one of {', '.join(actions)}, got {name[:80]!r}")


def to_rounds(sequences: Sequence[Edges], rounds: int) -> int:
    """The rounds of a contest between these. Raises InvalidRequest."""
    horizon = max(map(len, sequences))
    if rounds > horizon:
        raise InvalidRequest("rounds", f"rounds must be 0 to the horizon, {horizon}, got {rounds}", limit=horizon)
    return rounds or min(DEFAULT_ROUNDS, horizon)


def check_horizon(field: str, horizon: int, limit: int) -> None:
    """That a judge takes clips as long as that. Raises InvalidRequest."""
    if horizon > limit:
        raise InvalidRequest(
            field, f"{field} must be {limit} at most for this judge, got {horizon}", limit=limit, count=horizon
        )


def check_steps(sequences: Sequence[Edges], candidates: Draw | Sequence[video_pb.ActionSequence], limit: int) -> None:
    """That a judge takes clips as long as these futures. Raises InvalidRequest."""
    for row, each in enumerate(sequences):
        given = f"given.sequences[{row}].actions"
        check_horizon("sampling.horizon" if isinstance(candidates, Draw) else given, len(each), limit)


def check_answer(terms: Terms, sequences: Sequence[Edges], scene: Scene, max_bytes: int) -> None:
    """That the frames of the futures that are kept fit into one message. Raises InvalidRequest."""
    chunk_bytes = len(scene.last_frame) * scene.chunk_frames
    count = min(terms.keep, len(sequences))
    size = sum(sorted(map(len, sequences))[-count:]) * chunk_bytes
    if size > max_bytes:
        most = max_bytes // (max(map(len, sequences)) * chunk_bytes)
        raise InvalidRequest(
            "keep", f"keep must be {most} at most with frames, which one message holds, got {terms.keep}", limit=most
        )
