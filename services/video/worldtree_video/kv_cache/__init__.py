"""Blocks, who holds them, and the tables that list them."""

from worldtree_video.kv_cache.pool import BlockPool
from worldtree_video.kv_cache.table import BlockTable, Seen

__all__ = ["BlockPool", "BlockTable", "Seen"]
