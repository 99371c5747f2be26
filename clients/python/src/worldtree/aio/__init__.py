"""The asyncio side of the SDK: the same names as `worldtree`, awaited."""

from worldtree.aio.client import Client
from worldtree.aio.multitask_client import MultiTask
from worldtree.aio.navigate import Navigation
from worldtree.aio.navigator_client import Navigator
from worldtree.aio.play import Play
from worldtree.aio.reward_client import Reward, Scoring
from worldtree.aio.world import World

__all__ = ["Client", "MultiTask", "Navigation", "Navigator", "Play", "Reward", "Scoring", "World"]
