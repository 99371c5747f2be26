"""The Python SDK of Worldtree: hold, steer, fork, rewind and imagine in served world models.

The public names load on first use, so that `import worldtree` costs a server or a script only what it needs.
"""

from importlib import import_module
from importlib.metadata import version
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from worldtree import aio
    from worldtree.actions import Action
    from worldtree.client import Client
    from worldtree.errors import (
        Aborted,
        Cancelled,
        DataLoss,
        DeadlineExceeded,
        FailedPrecondition,
        FpsUnavailable,
        InternalError,
        InvalidRequest,
        MissingExtra,
        NotFound,
        PermissionDenied,
        ResourceExhausted,
        SessionBusy,
        SessionClosed,
        Unauthenticated,
        Unavailable,
        Unimplemented,
        WorldtreeError,
    )
    from worldtree.introspection import (
        ModelStatus,
        PlayStatus,
        ReplicaStatus,
        SessionStatus,
        Sharing,
        TenantShare,
        Tick,
        Tier,
    )
    from worldtree.live import LiveActions
    from worldtree.multitask_client import MultiTask
    from worldtree.multitask_types import (
        Answer,
        FrontPoint,
        ImageSet,
        Merge,
        MergeProgress,
        MethodInfo,
        ParetoFront,
        PredictTiming,
        Recipe,
        TaskAnswer,
        TaskInfo,
        TaskModel,
        TaskScore,
    )
    from worldtree.navigator_client import Navigator
    from worldtree.navigator_types import Future, Imagination, ImagineSpent, Plan, PlannerInfo
    from worldtree.play import Play
    from worldtree.reward_client import Reward, Scoring
    from worldtree.reward_types import (
        CategoryInfo,
        Comparison,
        DimensionInfo,
        DimensionScore,
        Judgement,
        Ranked,
        Ranking,
        Rubrics,
        ScoreTiming,
    )
    from worldtree.types import (
        Begun,
        Chunk,
        Clip,
        ContinuousActions,
        Forked,
        KvPolicy,
        ModelInfo,
        Paused,
        PlayedChunk,
        PromptSpace,
        Resumed,
        Rewound,
        Rollout,
        SessionInfo,
        Snapshot,
        Start,
        StorageFormat,
        Timing,
    )
    from worldtree.world import World

__version__ = version("worldtree")

_HOMES = {
    "actions": ("Action",),
    "client": ("Client",),
    "errors": (
        "Aborted",
        "Cancelled",
        "DataLoss",
        "DeadlineExceeded",
        "FailedPrecondition",
        "FpsUnavailable",
        "InternalError",
        "InvalidRequest",
        "MissingExtra",
        "NotFound",
        "PermissionDenied",
        "ResourceExhausted",
        "SessionBusy",
        "SessionClosed",
        "Unauthenticated",
        "Unavailable",
        "Unimplemented",
        "WorldtreeError",
    ),
    "introspection": (
        "ModelStatus",
        "PlayStatus",
        "ReplicaStatus",
        "SessionStatus",
        "Sharing",
        "TenantShare",
        "Tick",
        "Tier",
    ),
    "live": ("LiveActions",),
    "multitask_client": ("MultiTask",),
    "multitask_types": (
        "Answer",
        "FrontPoint",
        "ImageSet",
        "Merge",
        "MergeProgress",
        "MethodInfo",
        "ParetoFront",
        "PredictTiming",
        "Recipe",
        "TaskAnswer",
        "TaskInfo",
        "TaskModel",
        "TaskScore",
    ),
    "navigator_client": ("Navigator",),
    "navigator_types": ("Future", "Imagination", "ImagineSpent", "Plan", "PlannerInfo"),
    "play": ("Play",),
    "reward_client": ("Reward", "Scoring"),
    "reward_types": (
        "CategoryInfo",
        "Comparison",
        "DimensionInfo",
        "DimensionScore",
        "Judgement",
        "Ranked",
        "Ranking",
        "Rubrics",
        "ScoreTiming",
    ),
    "types": (
        "Begun",
        "Chunk",
        "Clip",
        "ContinuousActions",
        "Forked",
        "KvPolicy",
        "ModelInfo",
        "Paused",
        "PlayedChunk",
        "PromptSpace",
        "Resumed",
        "Rewound",
        "Rollout",
        "SessionInfo",
        "Snapshot",
        "Start",
        "StorageFormat",
        "Timing",
    ),
    "world": ("World",),
}
_HOME_OF = {name: module for module, names in _HOMES.items() for name in names}

__all__ = [
    "Aborted",
    "Action",
    "Answer",
    "Begun",
    "Cancelled",
    "CategoryInfo",
    "Chunk",
    "Client",
    "Clip",
    "Comparison",
    "ContinuousActions",
    "DataLoss",
    "DeadlineExceeded",
    "DimensionInfo",
    "DimensionScore",
    "FailedPrecondition",
    "Forked",
    "FpsUnavailable",
    "FrontPoint",
    "Future",
    "ImageSet",
    "Imagination",
    "ImagineSpent",
    "InternalError",
    "InvalidRequest",
    "Judgement",
    "KvPolicy",
    "LiveActions",
    "Merge",
    "MergeProgress",
    "MethodInfo",
    "MissingExtra",
    "ModelInfo",
    "ModelStatus",
    "MultiTask",
    "Navigator",
    "NotFound",
    "ParetoFront",
    "Paused",
    "PermissionDenied",
    "Plan",
    "PlannerInfo",
    "Play",
    "PlayStatus",
    "PlayedChunk",
    "PredictTiming",
    "PromptSpace",
    "Ranked",
    "Ranking",
    "Recipe",
    "ReplicaStatus",
    "ResourceExhausted",
    "Resumed",
    "Reward",
    "Rewound",
    "Rollout",
    "Rubrics",
    "ScoreTiming",
    "Scoring",
    "SessionBusy",
    "SessionClosed",
    "SessionInfo",
    "SessionStatus",
    "Sharing",
    "Snapshot",
    "Start",
    "StorageFormat",
    "TaskAnswer",
    "TaskInfo",
    "TaskModel",
    "TaskScore",
    "TenantShare",
    "Tick",
    "Tier",
    "Timing",
    "Unauthenticated",
    "Unavailable",
    "Unimplemented",
    "World",
    "WorldtreeError",
    "__version__",
    "aio",
]


def __getattr__(name: str) -> Any:
    if name == "aio":
        return import_module("worldtree.aio")
    if name in _HOME_OF:
        return getattr(import_module(f"worldtree.{_HOME_OF[name]}"), name)
    raise AttributeError(f"module 'worldtree' has no attribute {name!r}")


def __dir__() -> list[str]:
    return sorted(__all__)
