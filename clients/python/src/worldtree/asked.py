"""One message of a play's client, with what it means for the actions before it."""

from dataclasses import dataclass

from worldtree.video.v1 import video_generator_pb2 as pb

END = "end"
_MESSAGE_BYTES = 256


@dataclass(frozen=True, slots=True)
class Asked:
    """One message of the client's. `raw` empty and no control: the end of its messages."""

    control: str  # the name of the oneof's field; "" for what is no known control, `END`
    raw: bytes
    actions: tuple[pb.Action, ...] = ()
    replaces: bool = False
    first: int = 0  # number of its first action; the play's actions are numbered from 1
    through: int = 0  # number of the last action asked for until here
    back_count: int = 0  # chunks that it goes back
    ours: bool = False  # said by the gateway, so the answer is not the client's

    @property
    def size_bytes(self) -> int:
        """About what it takes here: small messages are mostly their bookkeeping."""
        return len(self.raw) + _MESSAGE_BYTES

    @property
    def is_end(self) -> bool:
        return self.control == END
