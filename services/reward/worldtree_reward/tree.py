"""Clips that begin alike, as a tree: what they share is looked at once."""

from collections.abc import Sequence

from worldtree_runtime.errors import InvalidRequest

from worldtree_reward.domain import Actions, Frames, Judgement, Spent
from worldtree_reward.errors import TooManyNodes
from worldtree_reward.judge import Track
from worldtree_reward.served import Asked


class Room:
    """For the nodes of all trees together."""

    def __init__(self, limit: int) -> None:
        self.count = 0
        self._limit = limit

    def take(self, count: int) -> None:
        """Raises TooManyNodes."""
        if self.count + count > self._limit:
            raise TooManyNodes(self.count + count, self._limit)
        self.count += count

    def give_back(self, count: int) -> None:
        self.count -= count


class Tree:
    """One question about many clips. Not for two tasks at a time. Close it."""

    def __init__(self, asked: Asked, room: Room, *, max_nodes: int, max_steps: int) -> None:
        self.asked = asked
        self._room, self._taken = room, 0
        self._max_nodes, self._max_steps = max_nodes, max_steps
        self._tracks: dict[int, Track] = {}
        self._count = 0

    def forget(self, nodes: Sequence[int]) -> None:
        """Raises InvalidRequest where there is no such node."""
        for place, node in enumerate(nodes):
            self._check_known(f"forget[{place}]", node)
        known = len(self._tracks)
        for node in nodes:
            self._tracks.pop(node, None)
        self._give_back(known - len(self._tracks))

    def close(self) -> None:
        """Makes room for others."""
        self._tracks.clear()
        self._give_back(self._taken)

    async def grow(
        self, parents: Sequence[int], frames: Frames, actions: Actions, judge: Sequence[bool]
    ) -> tuple[list[tuple[int, Judgement]], list[Spent]]:
        """Nodes with a frame each; parents come before their children. The judgements of those that are to be judged.

        Raises InvalidRequest and TooManyNodes, before anything is looked at.
        """
        depths = self._depths(parents)
        if len(self._tracks) + len(parents) > self._max_nodes:
            limit, count = self._max_nodes, len(self._tracks) + len(parents)
            raise InvalidRequest(
                "nodes", f"nodes must make a tree of {limit} at most, got {count}", limit=limit, count=count
            )
        self._room.take(len(parents))
        self._taken += len(parents)
        first = self._count
        self._count += len(parents)
        judged: list[tuple[int, Judgement]] = []
        spent: list[Spent] = []
        # Nodes of one depth wait for none of each other, so they are looked at together.
        for depth in sorted(set(depths)):
            rows = [row for row, own in enumerate(depths) if own == depth]
            tracks = [self._tracks[parents[row]].fork() if first + row else self.asked.begin() for row in rows]
            found = await self.asked.follow(
                [
                    (track, frames[row : row + 1], actions[row : row + 1])
                    for track, row in zip(tracks, rows, strict=True)
                ]
            )
            for row, track, (evidence, cost) in zip(rows, tracks, found, strict=True):
                self._tracks[first + row] = track
                spent.append(cost)
                if judge[row]:
                    judged.append((first + row, self.asked.served.judged(self.asked, evidence)))
        return sorted(judged, key=lambda each: each[0]), spent

    def _depths(self, parents: Sequence[int]) -> list[int]:
        """Steps from the root to each. Raises InvalidRequest."""
        found: list[int] = []
        for row, parent in enumerate(parents):
            node = self._count + row
            if not node:
                found.append(0)
                continue
            field = f"nodes[{row}].parent"
            inside = parent - self._count
            depth = found[inside] + 1 if 0 <= inside < row else self._check_known(field, parent).frame_count
            if depth > self._max_steps:
                limit = self._max_steps
                raise InvalidRequest(field, f"{field} must make a clip of {limit} steps at most", limit=limit)
            found.append(depth)
        return found

    def _give_back(self, count: int) -> None:
        self._taken -= count
        self._room.give_back(count)

    def _check_known(self, field: str, node: int) -> Track:
        track = self._tracks.get(node)
        if track is None:
            state = "was forgotten" if 0 <= node < self._count else "has yet to come"
            raise InvalidRequest(
                field, f"{field} must be a node that came before, got {node}, which {state}", node=node
            )
        return track
