"""What a robot that is steered by imagining was told to do, and is going to see of it: bookkeeping of one episode."""

from collections import Counter, deque
from collections.abc import Sequence

from worldtree_navigator.domain import Chunk, Edges

_PICTURES = 1024  # that are remembered to have been seen


class Foresight:
    """Steps are counted from the episode's first action."""

    def __init__(self) -> None:
        self._seen: deque[int] = deque(maxlen=_PICTURES)  # hashes
        self._expected: dict[int, tuple[int, bytes]] = {}  # by step: what the robot was told to do, what it sees then
        self._plan: Edges = ()
        self._plan_from = 0  # the step that it begins at

    @property
    def seen(self) -> Counter[int]:
        """How often, by the hash of the picture."""
        return Counter(self._seen)

    def saw(self, image: bytes) -> None:
        self._seen.append(hash(image))

    def frames(self, step: int, executed: Sequence[int]) -> list[bytes]:
        """What was seen from this step on, as far as the robot did what it was told to."""
        found = []
        for place, action in enumerate(executed, start=step):
            told, frame = self._expected.get(place, (None, b""))
            if told != action:
                break
            found.append(frame)
        return found

    def forget(self, step: int) -> None:
        """What was expected before it."""
        self._expected = {place: each for place, each in self._expected.items() if place >= step}

    def expect(self, step: int, edges: Edges, chunks: Sequence[Chunk], *, told: int) -> None:
        """A plan that begins at this step, of which the robot is told so much."""
        self._plan, self._plan_from = edges[told:], step + told
        for place, (edge, chunk) in enumerate(zip(edges[:told], chunks, strict=False), start=step):
            self._expected[place] = (edge.action, chunk.frames)

    def rest(self, step: int) -> Edges:
        """Of the last plan, what the robot was not told, from this step on."""
        return self._plan[step - self._plan_from :] if step >= self._plan_from else ()
