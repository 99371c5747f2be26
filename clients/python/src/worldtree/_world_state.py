"""What a world knows of itself without asking: the part that the synchronous and the asyncio World share."""

from collections.abc import Iterator

from worldtree._calls import Opened, Stepped
from worldtree.types import Frames, PlayedChunk, Rewound, SessionInfo


class WorldState:
    """Where a world stands, as of the last answer its server gave through this object."""

    def __init__(
        self,
        session: SessionInfo,
        *,
        last_frame: Frames,
        start_frames: Frames | None,
        warnings: tuple[str, ...] = (),
    ) -> None:
        self._session = session
        self._chunk_index = session.chunk_index
        self._state_hash = session.state_hash
        self._last_frame = last_frame
        self._start_frames = start_frames
        self._warnings = warnings
        # Set by a play that was abandoned: the server may have gone on past the last chunk that was seen.
        self._unsettled = False

    @property
    def id(self) -> str:
        """The session's id: `client.session(id)` reattaches."""
        return self._session.id

    @property
    def model(self) -> str:
        return self._session.model

    @property
    def seed(self) -> int:
        return self._session.seed

    @property
    def nfe(self) -> int:
        return self._session.nfe

    @property
    def chunk_index(self) -> int:
        """Chunks generated since the start."""
        return self._chunk_index

    @property
    def state_hash(self) -> str:
        """Equal hashes mean equal worlds."""
        return self._state_hash

    @property
    def last_frame(self) -> Frames:
        """The image the world stands at, [height, width, 3]."""
        return self._last_frame

    @property
    def start_frames(self) -> Frames | None:
        """What the world began with, [frames, height, width, 3]. None for one that was reattached or restored."""
        return self._start_frames

    @property
    def warnings(self) -> tuple[str, ...]:
        """What the server ignored when the world was opened, such as words of its prompt that the model does not know.

        Empty for one that was reattached, restored or forked.
        """
        return self._warnings

    def __repr__(self) -> str:
        return f"<{type(self).__module__}.World {self.id} of {self.model}, chunk {self.chunk_index}>"

    def _saw_opened(self, opened: Opened) -> None:
        self._session = opened.session
        self._chunk_index = opened.session.chunk_index
        self._state_hash = opened.session.state_hash
        self._last_frame = opened.frames[-1]
        self._unsettled = False

    def _saw_step(self, stepped: Stepped) -> None:
        self._chunk_index = stepped.chunk_index
        self._state_hash = stepped.state_hash
        self._last_frame = stepped.frames[-1]

    def _saw_played(self, chunk: PlayedChunk) -> None:
        self._chunk_index = chunk.index + 1
        self._state_hash = chunk.state_hash
        self._last_frame = chunk.frames[-1]

    def _saw_rewound(self, event: Rewound) -> None:
        self._chunk_index = event.chunk_index
        self._last_frame = event.last_frame

    def _stands_like(self, session: SessionInfo) -> bool:
        """Whether `session`, a child, was forked exactly where this object believes it stands."""
        if session.chunk_index != self._chunk_index:
            return False
        return session.seed != self.seed or session.state_hash == self._state_hash


SETTLE_TIMEOUT_S = 5.0


def settle_delays_s() -> Iterator[float]:
    """Pauses between the looks at a session whose play was abandoned, until it should have noticed."""
    delay_s, waited_s = 0.005, 0.0
    while waited_s < SETTLE_TIMEOUT_S:
        yield delay_s
        waited_s += delay_s
        delay_s = min(delay_s * 2, 0.2)
