"""What plays that broke off were promised: kept for a moment, for whoever goes on with them."""

from dataclasses import dataclass

from worldtree_video.admission import Paced, Share

_KEPT_S = 5.0  # a client is at the next gateway within a second or two


@dataclass(frozen=True, slots=True)
class Promise:
    """The share of one play, until a time on the engine's clock."""

    period_s: float
    full_nfe: int
    ends_s: float

    def covers(self, play: Paced) -> bool:
        return play.period_s >= self.period_s and play.full_nfe <= self.full_nfe


class Promises:
    """By session. A share that is kept is nobody else's, so that a play which takes it up again overruns nobody."""

    def __init__(self, kept_s: float = _KEPT_S) -> None:
        self.kept_s = kept_s
        self._kept: dict[str, Promise] = {}

    def keep(self, play: Paced, now: float) -> None:
        self._kept[play.session] = Promise(play.period_s, play.full_nfe, now + self.kept_s)

    def forget(self, session: str) -> None:
        self._kept.pop(session, None)

    def cover(self, play: Paced, now: float) -> bool:
        """Whether what is kept for its session is as much as the play asks for."""
        self._expire(now)
        kept = self._kept.get(play.session)
        return kept is not None and kept.covers(play)

    def others(self, session: str, now: float) -> list[Share]:
        """What is kept for all sessions but this one."""
        self._expire(now)
        return [kept for name, kept in self._kept.items() if name != session]

    def _expire(self, now: float) -> None:
        for session in [session for session, kept in self._kept.items() if kept.ends_s <= now]:
            del self._kept[session]
