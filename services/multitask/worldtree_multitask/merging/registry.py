"""Methods by name: those that are built in, and plug-ins, each imported when it is first asked for."""

from functools import cache
from importlib import import_module
from importlib.metadata import entry_points

from worldtree_multitask.merging.method import Method

ENTRY_POINT_GROUP = "worldtree.merge_methods"
_BUILT_IN = {
    "base": "worldtree_multitask.merging.single:Base",
    "expert": "worldtree_multitask.merging.single:Expert",
    "average": "worldtree_multitask.merging.arithmetic:Average",
    "task_arithmetic": "worldtree_multitask.merging.arithmetic:TaskArithmetic",
    "ties": "worldtree_multitask.merging.sparse:Ties",
    "dare": "worldtree_multitask.merging.sparse:Dare",
    "preference": "worldtree_multitask.merging.preference:Preference",
    "adamerging": "worldtree_multitask.merging.adamerging:AdaMerging",
    "fw_merging": "worldtree_multitask.merging.fw_merging:FwMerging",
    "scalearn": "worldtree_multitask.merging.scalearn:ScaLearn",
    "mm_mo": "worldtree_multitask.merging.mm_mo:MmMo",
}


@cache
def _homes() -> dict[str, str]:
    # A plug-in cannot replace what is built in: the same recipe must mean the same everywhere.
    return {point.name: point.value for point in entry_points(group=ENTRY_POINT_GROUP)} | _BUILT_IN


def methods() -> list[str]:
    """Names of all methods that are installed, sorted."""
    return sorted(_homes())


@cache
def method(name: str) -> Method | None:
    """The method of a name; None: there is none."""
    home = _homes().get(name)
    if home is None:
        return None
    module, _, attribute = home.partition(":")
    found: Method = getattr(import_module(module), attribute)()
    return found
