"""Small values under keys, for a time: in this process, in a folder, or shared by all replicas through Redis."""

from worldtree_runtime.stores.folder_store import FolderStore
from worldtree_runtime.stores.memory_store import MemoryStore
from worldtree_runtime.stores.redis_connection import RedisConnection
from worldtree_runtime.stores.redis_store import RedisStore
from worldtree_runtime.stores.store import Store, StoreUnavailable

__all__ = ["FolderStore", "MemoryStore", "RedisConnection", "RedisStore", "Store", "StoreUnavailable", "open_store"]


def open_store(redis_url: str | None) -> Store:
    """The store of a process: Redis where an URL is set, else memory. It connects at its first use, not here."""
    return MemoryStore() if redis_url is None else RedisStore(redis_url)
