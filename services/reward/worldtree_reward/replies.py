"""The words of domain.py to messages: pure functions."""

from collections.abc import Sequence

from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree_runtime.messages import from_seconds, from_stored

from worldtree_reward.config import RewardSettings
from worldtree_reward.domain import Judgement, Spent
from worldtree_reward.served import Served


def from_rubrics(served: Served, settings: RewardSettings, models: Sequence[str]) -> pb.ListRubricsResponse:
    package = served.package
    return pb.ListRubricsResponse(
        model=from_stored(served.stored),
        description=package.description,
        height_px=package.image.height_px,
        width_px=package.image.width_px,
        actions=package.actions,
        categories=[
            pb.Category(
                name=each.name,
                description=each.description,
                weights=each.weights,
                best_of_four=each.best_of_four,
                example=each.example,
            )
            for each in package.categories
        ],
        dimensions=[
            pb.Dimension(
                name=each.name, description=each.card.description, pairwise_accuracy=each.card.pairwise_accuracy
            )
            for each in served.judge.dimensions
        ],
        calibration_error=package.calibration_error,
        trained_steps=package.trained_steps,
        max_steps=settings.max_steps,
        max_words=package.goal.max_words,
        models=models,
        tie_below=package.tie_below,
    )


def from_judgement(found: Judgement) -> pb.Judgement:
    return pb.Judgement(
        reward=found.reward.mean,
        uncertainty=found.reward.deviation,
        category="" if found.route.unseen else found.route.category,
        category_probability=found.route.probability,
        unseen_category=found.route.unseen,
        dimensions=[
            pb.DimensionScore(name=each.name, score=each.score, uncertainty=each.uncertainty, counts=each.counts)
            for each in found.dimensions
        ],
        notes=found.notes,
    )


def from_spent(spent: Sequence[Spent]) -> pb.ScoreTiming:
    """Of clips that were scored together: the longest wait, the longest run."""
    sizes = [size for each in spent for size in each.batch_sizes]
    return pb.ScoreTiming(
        queue_duration=from_seconds(max(each.queue_s for each in spent)),
        run_duration=from_seconds(max(each.run_s for each in spent)),
        mean_batch_size=sum(sizes) / len(sizes) if sizes else 0.0,
    )
