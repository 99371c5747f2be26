"""One version of a judge as it is served: its engine, and how questions become judgements."""

from collections.abc import Sequence

from worldtree_runtime.errors import NotFound
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.reward_package import RewardPackage, StoredReward
from worldtree_runtime.triton_graph import TritonGraph

from worldtree_reward.config import RewardSettings
from worldtree_reward.domain import Actions, Evidence, Frames, Judgement, Question, Reading, Route, Spent
from worldtree_reward.engine import Engine
from worldtree_reward.goal import read_goal
from worldtree_reward.judge import Judge, Track
from worldtree_reward.judging import judgement, route_of
from worldtree_reward.metrics import RewardMetrics


class Served:
    """`start` and `stop` its engine."""

    def __init__(self, stored: StoredReward, settings: RewardSettings, metrics: RewardMetrics) -> None:
        """Raises PackageError."""
        self.stored = stored
        self.judge = Judge(stored, device=settings.device, threads=settings.threads)
        self._remote = self._open_remote(settings)
        if self._remote is not None:
            metrics.backend_up.labels(stored.name).set_function(lambda: self.ready)
        self.engine = Engine(
            self.judge,
            metrics,
            name=stored.name,
            max_batch=settings.max_batch,
            max_waiting=settings.max_waiting_frames,
        )
        self._metrics = metrics

    def _open_remote(self, settings: RewardSettings) -> TritonGraph | None:
        """What runs the trunk in place of this process, where the package says so."""
        backend = self.package.backend
        if backend is None:
            return None
        file = self.stored.folder / "model.yaml"
        if not (backend.is_local or backend.host in settings.backend_hosts):
            # callers' frames go there, in clear: where to is for whoever runs the service, not who wrote the package
            raise PackageError(
                file, "backend", f"host {backend.host} must be this machine's or in the setting reward.backend_hosts"
            )
        remote = TritonGraph(
            file,
            backend,
            self.judge.trunk_inputs,
            self.judge.trunk_outputs,
            self.judge.trial(),
            max_rows=settings.max_batch,
            timeout_s=settings.backend_timeout_s,
            look_s=settings.backend_look_s,
        )
        self.judge.trunk = remote
        return remote

    @property
    def ready(self) -> bool:
        """Whether all that it needs is there."""
        return self._remote is None or self._remote.ready

    def close(self) -> None:
        """When its engine has stopped."""
        if self._remote is not None:
            self._remote.close()

    @property
    def package(self) -> RewardPackage:
        return self.stored.package

    @property
    def dimension_names(self) -> tuple[str, ...]:
        return tuple(each.name for each in self.judge.dimensions)

    def ask(self, question: Question) -> "Asked":
        """Raises NotFound for a category or dimension that there is not."""
        package = self.package
        if question.category is not None and package.category(question.category) is None:
            raise NotFound("category", question.category, known=package.category_names)
        for name in question.weights or ():
            if name not in self.dimension_names:
                raise NotFound("dimension", name, known=self.dimension_names)
        reading = read_goal(question.goal, package.goal)
        return Asked(self, question, reading, route_of(self.judge.route(reading.words), question, package))

    def judged(self, asked: "Asked", evidence: Evidence) -> Judgement:
        found = judgement(evidence, asked.question, asked.route, self.judge.dimensions, self.package)
        category = "unseen" if asked.route.unseen else asked.route.category
        self._metrics.clips.labels(self.stored.name, category).inc()
        return Judgement(found.reward, found.route, found.dimensions, (*asked.reading.notes, *found.notes))


class Asked:
    """A question to a judge, read and routed."""

    def __init__(self, served: Served, question: Question, reading: Reading, route: Route) -> None:
        self.served, self.question, self.reading, self.route = served, question, reading, route

    def begin(self) -> Track:
        return self.served.judge.begin(self.reading.words)

    async def follow(self, clips: Sequence[tuple[Track, Frames, Actions]]) -> list[tuple[Evidence, Spent]]:
        """As `look`, not judged yet."""
        return await self.served.engine.look(clips)

    async def look(self, clips: Sequence[tuple[Track, Frames, Actions]]) -> list[tuple[Judgement, Spent]]:
        """Judgements of clips that go on, each by some frames and the actions that led to them."""
        return [(self.served.judged(self, evidence), spent) for evidence, spent in await self.follow(clips)]
