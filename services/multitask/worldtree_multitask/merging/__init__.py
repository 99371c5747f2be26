"""How experts become one network: methods over flat parameter vectors, in numpy alone."""

from worldtree_multitask.merging.layout import Layout
from worldtree_multitask.merging.method import Cancelled, Context, Merged, Method, Needs, Network, Point, Step
from worldtree_multitask.merging.registry import method, methods

__all__ = [
    "Cancelled",
    "Context",
    "Layout",
    "Merged",
    "Method",
    "Needs",
    "Network",
    "Point",
    "Step",
    "method",
    "methods",
]
