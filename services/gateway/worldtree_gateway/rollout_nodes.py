"""The nodes of a Rollout that its caller has, so that one which broke off can be begun again without a repeat."""

from google.protobuf.message import DecodeError
from worldtree.video.v1 import video_generator_pb2 as pb


class PassedNodes:
    """At most `limit` of them; beyond that, or after a message that can't be read, the Rollout isn't `resumable`.

    A rollout is deterministic, so the second time brings the same nodes, in perhaps another order. A node is known by
    its depth and the first of its sequences: of the nodes at one depth, a sequence passes through one only.
    """

    def __init__(self, limit: int = 65_536) -> None:
        self.resumable = True
        self._limit = limit
        self._passed: set[tuple[int, int]] = set()
        self._again = False

    def restart(self) -> None:
        """The Rollout begins again."""
        self._again = True

    def is_new(self, message: bytes) -> bool:
        """Whether the caller lacks this node; from now on it has it."""
        if not self.resumable:
            return True
        try:
            node = pb.RolloutResponse.FromString(message)
        except DecodeError:
            self.resumable = False
            return True
        key = (node.depth, node.sequences[0] if node.sequences else -1)
        if self._again and key in self._passed:
            return False
        self._passed.add(key)
        self.resumable = len(self._passed) <= self._limit
        return True
