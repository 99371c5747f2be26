"""What a service's process begins with."""

import numpy as np
from threadpoolctl import threadpool_info, threadpool_limits
from worldtree_runtime import process


def test_a_services_small_matrices_are_multiplied_by_one_thread() -> None:
    found: list[int] = []

    async def main() -> None:
        found.extend(pool["num_threads"] for pool in threadpool_info() if pool["user_api"] == "blas")

    with threadpool_limits(limits=2, user_api="blas"):  # ends with what was there before
        assert np.ones((2, 2)).sum() == 4.0
        process.run(main)
    assert found
    assert set(found) == {1}
