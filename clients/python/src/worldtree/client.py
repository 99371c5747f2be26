"""The synchronous client."""

import time
from collections.abc import Mapping
from types import TracebackType
from typing import TYPE_CHECKING, Any

from worldtree import _calls, _gateway_calls
from worldtree._channel import ChannelSettings
from worldtree._transport import Transport
from worldtree.actions import ActionsLike
from worldtree.convert import seconds
from worldtree.errors import Unavailable
from worldtree.introspection import CachePurge, ReplicaStatus
from worldtree.tls import TlsLike
from worldtree.types import Clip, KvPolicy, ModelInfo, Progress, Seconds, SessionInfo, Snapshot
from worldtree.world import World

if TYPE_CHECKING:
    from worldtree.multitask_client import MultiTask
    from worldtree.navigator_client import Navigator
    from worldtree.reward_client import Reward

READY_POLL_S = 0.2


class Client:
    """A Worldtree server, spoken to synchronously. Threads may share one.

    `address` is host:port (else WORLDTREE_ADDRESS, else localhost:7070); `api_key` and `timeout` default to
    WORLDTREE_API_KEY and WORLDTREE_TIMEOUT (60 s); `tls` is true for the system's CAs, a file of CA certificates,
    or Tls, which may bring a certificate of the client's own. Opening a client connects to nothing yet: the first call
    does.
    """

    def __init__(
        self,
        address: str | None = None,
        *,
        api_key: str | None = None,
        tls: TlsLike = False,
        timeout: Seconds | None = None,
    ) -> None:
        self._transport = Transport(ChannelSettings.resolve(address, api_key=api_key, tls=tls, timeout=timeout))
        self._multitask: MultiTask | None = None
        self._reward: Reward | None = None
        self._navigator: Navigator | None = None

    @property
    def address(self) -> str:
        return self._transport.settings.address

    @property
    def multitask(self) -> "MultiTask":
        """Tasks answered by merged experts, and the merges themselves."""
        if self._multitask is None:
            from worldtree.multitask_client import MultiTask

            self._multitask = MultiTask(self._transport)
        return self._multitask

    @property
    def reward(self) -> "Reward":
        """How good clips are, by what they were for."""
        if self._reward is None:
            from worldtree.reward_client import Reward

            self._reward = Reward(self._transport)
        return self._reward

    @property
    def navigator(self) -> "Navigator":
        """Plans by imagining."""
        if self._navigator is None:
            from worldtree.navigator_client import Navigator

            self._navigator = Navigator(self._transport)
        return self._navigator

    def wait_ready(self, timeout: Seconds = 30.0) -> list[ModelInfo]:
        """Waits until the server answers; what it serves. Raises Unavailable when it does not within `timeout`."""
        deadline = time.monotonic() + seconds(timeout, field="timeout")
        while True:
            try:
                return self._transport.call(_calls.list_models(), timeout=max(deadline - time.monotonic(), 0.001))
            except Unavailable:
                if time.monotonic() + READY_POLL_S >= deadline:
                    raise
                time.sleep(READY_POLL_S)

    def models(self) -> list[ModelInfo]:
        """What is served, newest version of each."""
        return self._transport.call(_calls.list_models())

    def model(self, name: str) -> ModelInfo:
        """One model by "name" or "name/version"."""
        return self._transport.call(_calls.get_model(name))

    def world(
        self,
        model: str | ModelInfo,
        *,
        start: str | None = None,
        frames: Any = None,
        actions: ActionsLike | None = None,
        prompt: str | None = None,
        seed: int = 0,
        nfe: int = 0,
        kv: KvPolicy | Mapping[str, Any] | None = None,
        ttl: Seconds | None = None,
        timeout: Seconds | None = None,
    ) -> World:
        """Opens a world from a named `start`, from `frames` [T, H, W, 3] with the T-1 `actions` between them, or from
        a `prompt`, a scene in words that the model knows (`World.warnings` names those that it does not). `seed` draws
        the noise, and the scene of a prompt. `nfe` 0 is the model's default; `ttl` how long the world lives untouched.
        """
        call = _calls.create_session(
            model, start=start, frames=frames, actions=actions, prompt=prompt, seed=seed, nfe=nfe, kv=kv, ttl=ttl
        )
        opened = self._transport.call(call, timeout=timeout)
        return World(
            self._transport,
            opened.session,
            last_frame=opened.frames[-1],
            start_frames=opened.frames,
            warnings=opened.warnings,
        )

    def session(self, id: str) -> World:  # noqa: A002 - the session's id is what users call it
        """Reattaches to a session by its id."""
        return self._world(self._transport.call(_calls.get_session(id)))

    def sessions(self) -> list[SessionInfo]:
        """The live sessions, oldest first."""
        sessions: list[SessionInfo] = []
        page_token = ""
        while True:
            page = self._transport.call(_calls.list_sessions(page_token))
            sessions += page.sessions
            page_token = page.next_page_token
            if not page_token:
                return sessions

    def restore(self, snapshot: Snapshot | str | bytes, *, ttl: Seconds | None = None) -> World:
        """Opens a new world from a snapshot, its id or its bytes."""
        return self._world(self._transport.call(_calls.restore(snapshot, ttl=ttl)))

    def generate(
        self,
        model: str | ModelInfo,
        *,
        actions: ActionsLike,
        start: str | None = None,
        frames: Any = None,
        frame_actions: ActionsLike | None = None,
        prompt: str | None = None,
        seed: int = 0,
        nfe: int = 0,
        kv: KvPolicy | Mapping[str, Any] | None = None,
        progress: Progress | None = None,
        timeout: Seconds | None = None,
    ) -> Clip:
        """A clip in one call, without a session: a pure function of its arguments. `frame_actions` are those between
        the chunks of `frames`."""
        call = _calls.generate(
            model,
            start=start,
            frames=frames,
            frame_actions=frame_actions,
            prompt=prompt,
            actions=actions,
            seed=seed,
            nfe=nfe,
            kv=kv,
            progress=progress,
        )
        return self._transport.gather(call, timeout=timeout)

    def introspect(
        self, replica: str | None = None, *, session_limit: int = 100, timeout: Seconds | None = None
    ) -> ReplicaStatus:
        """What a replica is doing, for its operators: sessions, blocks by tier, who shares what, ticks, deadlines.

        Without a name, whichever answers; of each model at most `session_limit` sessions, the busiest first. Raises
        Unavailable at once when the named one is down, with its name in the error's `metadata`.
        """
        return self._transport.call(_calls.introspect(replica, session_limit=session_limit), timeout=timeout)

    def replicas(self, *, timeout: Seconds | None = None) -> list[str]:
        """The names of the video replicas behind a gateway, with those that are down; without a gateway, of the one
        that answers.

        One that has been down since the gateway started is named by its address. Raises Unavailable when all are down.
        """
        return self._transport.call(_calls.replicas(), timeout=timeout)

    def purge_cache(
        self,
        *,
        tenant: str | None = None,
        digest: str | None = None,
        everything: bool = False,
        timeout: Seconds | None = None,
    ) -> CachePurge:
        """Has a gateway, and all that share its Redis, forget cached answers, for their operators: those of a tenant,
        those of the model with that digest (those of both, where both are given), or everything.

        When it returns, no gateway that reaches Redis serves an answer from before. Without Redis only the one that was
        asked forgets.
        """
        call = _gateway_calls.purge_cache(tenant, digest, everything=everything)
        return self._transport.call(call, timeout=timeout)

    def close(self) -> None:
        """Closes the channel. Worlds stay on the server until they are closed or their lease ends."""
        self._transport.close()

    def __enter__(self) -> "Client":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _world(self, opened: _calls.Opened) -> World:
        return World(self._transport, opened.session, last_frame=opened.frames[-1], start_frames=None)
