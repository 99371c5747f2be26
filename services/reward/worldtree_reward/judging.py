"""From what the experts say to a judgement: pure functions."""

import math
from collections.abc import Mapping, Sequence

import numpy as np
from worldtree_runtime.opinion import Opinion
from worldtree_runtime.reward_package import ExpertCard, RewardPackage

from worldtree_reward.domain import DimensionScore, Evidence, Judgement, Question, Route
from worldtree_reward.judge import Dimension


def route_of(probabilities: Sequence[float], question: Question, package: RewardPackage) -> Route:
    """The category that judges: the one asked for, or the router's likeliest."""
    if question.category is not None:
        return Route(question.category, 1.0)
    *known, none = probabilities
    best = int(np.argmax(known))
    return Route(package.category_names[best], known[best], unseen=none >= package.goal.unseen_from)


def judgement(
    evidence: Evidence, question: Question, route: Route, dimensions: Sequence[Dimension], package: RewardPackage
) -> Judgement:
    """Of one clip. Of a goal of no known category, nobody knows how good it is, unless weights say what counts."""
    category = package.category(route.category)
    assert category is not None, f"{route.category} is no category"
    counting = question.weights if question.weights is not None else {} if route.unseen else category.weights
    scores = {
        each.name: score_of(each.card, opinion) for each, opinion in zip(dimensions, evidence.dimensions, strict=True)
    }
    if question.weights is not None:
        reward = weighted(scores, {each.name: each.card for each in dimensions}, question.weights)
    elif route.unseen:
        reward = Opinion(0.0, math.inf)
    else:
        reward = evidence.whole[route.category]
    told = tuple(
        DimensionScore(name, score.mean, score.deviation, bool(counting.get(name))) for name, score in scores.items()
    )
    notes = []
    if evidence.step_count > package.trained_steps:
        notes.append(f"the clip has {evidence.step_count} steps; the judge learnt from up to {package.trained_steps}")
    return Judgement(reward, route, told, tuple(notes))


def score_of(card: ExpertCard, opinion: Opinion) -> Opinion:
    """An expert's answer on the scale of its dimension."""
    xs, ys = zip(*card.knots, strict=True)
    low, middle, high = np.interp(
        [opinion.mean - opinion.deviation, opinion.mean, opinion.mean + opinion.deviation], xs, ys
    )
    # Beyond the knots scores stay, beliefs do not become certain.
    least = 0.01 * (ys[-1] - ys[0])
    return Opinion(float(middle), float(max((high - low) / 2, least, 1e-6)))


def weighted(scores: Mapping[str, Opinion], cards: Mapping[str, ExpertCard], weights: Mapping[str, float]) -> Opinion:
    """The weighted mean of scores, each in units of its dimension."""
    total = sum(abs(weight) for weight in weights.values())
    shares = {name: weight / total / cards[name].unit for name, weight in weights.items()}
    mean = sum(share * scores[name].mean for name, share in shares.items())
    return Opinion(mean, math.sqrt(sum((share * scores[name].deviation) ** 2 for name, share in shares.items())))
