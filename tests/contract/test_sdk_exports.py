"""The SDK's public surface is a list, and light to import."""

import inspect
import subprocess
import sys

import pytest
import worldtree
import worldtree.aio

PUBLIC = {
    "Aborted", "Action", "ActionChunk", "Answer", "Begun", "CachePurge", "Cancelled", "CategoryInfo", "Chunk", "Client",
    "Clip", "Comparison", "ContinuousActions", "DataLoss", "DeadlineExceeded", "DimensionInfo", "DimensionScore",
    "FailedPrecondition", "Forked", "FpsUnavailable", "FrontPoint", "Future", "ImageSet", "Imagination",
    "ImagineSpent", "InternalError", "InvalidRequest", "Judgement", "KvPolicy", "LiveActions", "MapPath", "Merge",
    "MergeProgress", "MethodInfo", "MissingExtra", "ModelInfo", "ModelStatus", "MultiTask", "Navigation",
    "NavigationInfo", "Navigator", "NotFound", "ObservationRefused", "ParetoFront", "Paused", "PermissionDenied",
    "Plan", "PlannerInfo", "Play", "PlayStatus", "PlayedChunk", "PredictTiming", "PromptSpace", "Ranked", "Ranking",
    "Recipe", "ReplicaStatus", "ResourceExhausted", "Resumed", "Reward", "Rewound", "Rollout", "Rubrics",
    "ScoreTiming", "Scoring", "SessionBusy", "SessionClosed", "SessionInfo", "SessionStatus", "Sharing", "Snapshot",
    "Start", "StorageFormat", "TaskAnswer", "TaskInfo", "TaskModel", "TaskScore", "TenantShare", "Tick", "Tier",
    "TimeSplit", "Timing", "Tls", "Unauthenticated", "Unavailable", "Unimplemented", "World", "WorldtreeError",
    "__version__", "aio",
}  # fmt: skip
CLIENT = {
    "address", "close", "generate", "introspect", "model", "models", "multitask", "navigator", "purge_cache",
    "replicas", "restore", "reward", "session", "sessions", "wait_ready", "world",
}  # fmt: skip
WORLD = {
    "chunk_index", "close", "fork", "id", "keep_alive", "last_frame", "model", "nfe", "play", "refresh", "rewind",
    "rollout", "save", "seed", "start_frames", "state_hash", "step", "warnings",
}  # fmt: skip
MULTITASK = {"create_merge", "delete_merge", "merge", "merges", "pareto_front", "predict", "tasks"}
REWARD = {"compare", "rank", "rubrics", "score", "scoring"}
SCORING = {"add", "close"}
NAVIGATOR = {"imagine", "navigate", "plan", "plan_on_map", "planners"}
NAMES = {
    "Client": CLIENT,
    "World": WORLD,
    "MultiTask": MULTITASK,
    "Reward": REWARD,
    "Scoring": SCORING,
    "Navigator": NAVIGATOR,
}
FOR_PLAY = {"open_play", "adopt", "action_names"}


def public(kind: type) -> set[str]:
    return {name for name in dir(kind) if not name.startswith("_")}


def test_the_public_names_are_these() -> None:
    assert set(worldtree.__all__) == PUBLIC
    for name in PUBLIC:
        assert getattr(worldtree, name) is not None
    assert set(worldtree.aio.__all__) == {
        "Client",
        "MultiTask",
        "Navigation",
        "Navigator",
        "Play",
        "Reward",
        "Scoring",
        "World",
    }


def test_an_unknown_name_is_an_attribute_error() -> None:
    with pytest.raises(AttributeError, match="nonsense"):
        _ = worldtree.nonsense


def test_both_sides_have_the_same_names() -> None:
    assert public(worldtree.Client) == public(worldtree.aio.Client) == CLIENT
    assert public(worldtree.World) - FOR_PLAY == public(worldtree.aio.World) - FOR_PLAY == WORLD
    assert public(worldtree.MultiTask) == public(worldtree.aio.MultiTask) == MULTITASK
    assert public(worldtree.Reward) == public(worldtree.aio.Reward) == REWARD
    assert public(worldtree.Navigator) == public(worldtree.aio.Navigator) == NAVIGATOR
    assert public(worldtree.Scoring) == public(worldtree.aio.Scoring) == SCORING


@pytest.mark.parametrize("name", NAMES)
def test_both_sides_take_the_same_arguments_and_only_the_first_is_positional(name: str) -> None:
    ours, theirs = getattr(worldtree, name), getattr(worldtree.aio, name)
    for method in NAMES[name] - {"address", "multitask"}:
        if not callable(inspect.getattr_static(ours, method)):
            continue
        parameters = inspect.signature(getattr(ours, method)).parameters
        other = inspect.signature(getattr(theirs, method)).parameters
        assert [(p.name, p.kind, p.default) for p in parameters.values()] == [
            (p.name, p.kind, p.default) for p in other.values()
        ], method
        positional = [p for p in parameters.values() if p.kind is inspect.Parameter.POSITIONAL_OR_KEYWORD]
        assert len(positional) <= 2, f"{method}: self and one more"


def run(code: str) -> str:
    return subprocess.run([sys.executable, "-P", "-c", code], check=True, capture_output=True, text=True).stdout


def test_importing_the_sdk_imports_no_grpc_and_using_it_no_extra_and_no_server() -> None:
    loaded = run("import sys, worldtree; print(sorted(sys.modules))")
    assert "'grpc'" not in loaded
    assert "'numpy'" not in loaded
    loaded = run(
        "import sys, worldtree; [getattr(worldtree, name) for name in worldtree.__all__]; print(sorted(sys.modules))"
    )
    assert "'grpc'" in loaded
    for heavy in ("PIL", "av", "typer", "rich", "yaml", "worldtree_runtime", "worldtree_video", "worldtree_gateway"):
        assert f"'{heavy}'" not in loaded, heavy
