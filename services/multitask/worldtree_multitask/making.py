"""From what a method made to merges that have names."""

import hashlib
import time
from dataclasses import replace

from worldtree_multitask.blends import recipe_key
from worldtree_multitask.domain import Blend, Card, Point, Recipe
from worldtree_multitask.served import Made, Served


def made_key(served: Served, recipe: Recipe, content: str) -> str:
    """Equal for merges that are made alike: of one model, by one recipe, from the same images."""
    return hashlib.sha256(f"{served.stored.digest}\n{recipe_key(recipe)}\n{content}".encode()).hexdigest()


def named(made: Made, name: str, served: Served) -> list[tuple[Card, Blend]]:
    """The merge under its name, then the points of its front under `NAME.0`, `NAME.1`, ...

    An empty name: the method's, and the first 8 digits of the merge's digest.
    """
    name = name or f"{made.recipe.method}-{made.blend.digest[:8]}"
    stored = served.stored
    card = Card(
        name=name,
        digest=made.blend.digest,
        model=stored.name,
        version=stored.version,
        model_digest=stored.digest,
        recipe=made.recipe,
        create_s=time.time(),
        make_s=made.make_s,
        scores=made.scores,
        notes=made.notes,
        guarded=made.guarded,
        image_count=made.image_count,
        evaluation_count=made.evaluation_count,
        hypervolume=made.hypervolume,
        points=tuple(
            Point(f"{name}.{index}", point.objectives, point.preference, point.sparsity)
            for index, point in enumerate(made.front)
        ),
    )
    points = [
        (
            replace(card, name=told.merge, digest=point.blend.digest, scores=point.scores, points=(), front=name),
            point.blend,
        )
        for told, point in zip(card.points, made.front, strict=True)
    ]
    return [(_noted(card), made.blend), *((_noted(point), blend) for point, blend in points)]


def _noted(card: Card) -> Card:
    if not card.worse_than_base:
        return card
    said = f"it is worse than the base, which has {card.base_score:.3f} on the mean of the tasks: {card.mean_score:.3f}"
    return replace(card, notes=(*card.notes, said))
