"""Adding task vectors: the mean of the experts, and task arithmetic (Ilharco et al., "Editing Models with Task
Arithmetic", section 2)."""

from typing import Annotated, ClassVar

import numpy as np
from numpy.typing import NDArray
from pydantic import Field

from worldtree_multitask.merging.layout import Flat
from worldtree_multitask.merging.method import Context, Merged, Needs, Parameters, check_experts


class AverageParameters(Parameters):
    """Of `average`."""

    experts: Annotated[tuple[str, ...], Field(description="experts to average; empty: all")] = ()


class Average:
    """The mean of the experts' weights (Wortsman et al., "Model soups", section 2)."""

    name: ClassVar[str] = "average"
    description: ClassVar[str] = "the mean of the experts' weights (model soups)"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = AverageParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: AverageParameters
    ) -> Merged:
        columns = check_experts(parameters.experts, context.experts)
        coefficients = np.zeros((len(context.layout.layers), len(context.experts)), np.float32)
        coefficients[:, columns] = 1.0 / len(columns)
        return Merged(coefficients=coefficients)


class TaskArithmeticParameters(Parameters):
    """Of `task_arithmetic`."""

    scale: Annotated[float, Field(ge=-2.0, le=2.0, description="times the sum of the task vectors")] = 0.3
    experts: Annotated[tuple[str, ...], Field(description="experts to add; empty: all")] = ()


class TaskArithmetic:
    """The base plus `scale` times the sum of the task vectors."""

    name: ClassVar[str] = "task_arithmetic"
    description: ClassVar[str] = "the base plus scale x the sum of the task vectors (task arithmetic)"
    needs: ClassVar[Needs] = Needs.NOTHING
    immediate: ClassVar[bool] = True
    parameters: ClassVar[type[Parameters]] = TaskArithmeticParameters

    def merge(
        self, base: Flat, task_vectors: NDArray[np.float32], context: Context, parameters: TaskArithmeticParameters
    ) -> Merged:
        columns = check_experts(parameters.experts, context.experts)
        coefficients = np.zeros((len(context.layout.layers), len(context.experts)), np.float32)
        coefficients[:, columns] = parameters.scale
        return Merged(coefficients=coefficients)
