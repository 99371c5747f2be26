"""No merging: the base or one expert, as it is. What every merge is held against."""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters


class BaseParameters(Parameters):
    """Of `base`: none."""


class Base:
    """The network that all experts come from."""

    name: ClassVar[str] = "base"
    description: ClassVar[str] = "the base network, without any expert"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = BaseParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: BaseParameters
    ) -> Merged:
        return Merged(coefficients=np.zeros((len(context.layout.layers), len(context.experts)), np.float32))


class ExpertParameters(Parameters):
    """Of `expert`."""

    expert: Annotated[str, Field(min_length=1, description="name of the expert")]


class Expert:
    """One expert as it was trained."""

    name: ClassVar[str] = "expert"
    description: ClassVar[str] = "one expert as it was trained"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = ExpertParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: ExpertParameters
    ) -> Merged:
        if parameters.expert not in context.experts:
            raise ValueError(f"expert must be one of {list(context.experts)}, got {parameters.expert!r}")
        coefficients = np.zeros((len(context.layout.layers), len(context.experts)), np.float32)
        coefficients[:, context.experts.index(parameters.expert)] = 1.0
        return Merged(coefficients=coefficients)
