"""New and removed model versions under live traffic: no call fails, and old sessions stay in the world they know."""

import asyncio
import errno
import gc
import os
import shutil
import threading
import urllib.request
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import grpc
import grpc.aio
import pytest
from prometheus_client import CollectorRegistry
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_runtime.model_repository import ModelRepository
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import reload as reloading
from worldtree_video.catalog import Served, load_model
from worldtree_video.metrics import VideoMetrics
from worldtree_video.reload import Reload

ONE = TinyWorld()
TWO = TinyWorld(version="2", window=3)  # other frames from the second chunk on
LOOK_S = 0.03


@pytest.fixture
def models(tmp_path: Path) -> Path:
    ONE.write(tmp_path / "models")
    return tmp_path / "models"


def publish(models: Path, world: TinyWorld) -> Path:
    """A whole package at once, as an installer does it."""
    staged = world.write(models.parent / "staged")
    (models / world.name).mkdir(exist_ok=True)
    return staged.rename(models / world.name / world.version)


def versions(video: Any) -> list[str]:
    return [entry.stored.version for entry in video.catalog]


async def newest(video: Any) -> str:
    answer = await video.stub.GetModel(pb.GetModelRequest(model=common.ModelRef(name="tiny")))
    return str(answer.model.ref.version)


async def serves(video: Any, version: str) -> bool:
    return await newest(video) == version


async def stepped(video: Any, session: str, action: int) -> bytes:
    answer = await video.stub.Step(pb.StepRequest(session=session, actions=[pb.Action(id=action)]))
    return bytes(answer.chunks[0].frames.SerializeToString())


async def walk(video: Any, session: str, count: int) -> list[bytes]:
    return [await stepped(video, session, number % 3) for number in range(count)]


def watched(video: Any, models: Path, load: Callable[[Path], Served] | None = None) -> Reload:
    """One whose looks are the test's, for a service that looks at nothing itself."""
    repository, metrics = ModelRepository(models, VideoPackage), VideoMetrics(CollectorRegistry())
    return Reload(
        video.catalog,
        repository,
        load or (lambda folder: load_model(repository.read(folder), video.settings, metrics)),
        metrics,
    )


class Traffic:
    """Calls of every kind, over and over. The first that fails ends the test."""

    def __init__(self, video: Any) -> None:
        self.video = video
        self.call_count = 0
        self.seen: set[str] = set()  # versions that new sessions met
        self.over = False

    @asynccontextmanager
    async def flowing(self) -> AsyncIterator["Traffic"]:
        kinds: list[Callable[[], Awaitable[None]]] = [self.visit, self.visit, self.clip, self.play, self.futures]
        tasks = [asyncio.create_task(self._over_and_over(kind)) for kind in kinds]
        try:
            yield self
        finally:
            self.over = True
            await asyncio.gather(*tasks)

    async def _over_and_over(self, kind: Callable[[], Awaitable[None]]) -> None:
        while not self.over:
            await kind()
            self.call_count += 1

    async def visit(self) -> None:
        request = pb.CreateSessionRequest(model=common.ModelRef(name="tiny"), origin=pb.Origin(start="dusk"), seed=3)
        session = (await self.video.stub.CreateSession(request)).session
        self.seen.add(session.model.version)
        await walk(self.video, session.session, 2)
        await self.video.stub.Delete(pb.DeleteRequest(session=session.session))

    async def clip(self) -> None:
        request = pb.GenerateRequest(
            model=common.ModelRef(name="tiny"),
            origin=pb.Origin(start="dawn"),
            seed=self.call_count,
            actions=[pb.Action(id=1)] * 6,
        )
        assert len([message async for message in self.video.stub.Generate(request)]) == 7

    async def play(self) -> None:
        session = await self.video.create(start="dawn")
        call = self.video.stub.Play()
        begin = pb.PlayRequest.Begin(actions=[pb.Action(id=number % 3) for number in range(12)])
        await call.write(pb.PlayRequest(session=session, begin=begin))
        await call.done_writing()
        assert len([message async for message in call if message.HasField("played")]) == 12
        await self.video.stub.Delete(pb.DeleteRequest(session=session))

    async def futures(self) -> None:
        session = await self.video.create(start="dawn")
        sequences = [pb.ActionSequence(actions=[pb.Action(id=0), pb.Action(id=last)]) for last in (1, 2)]
        nodes = self.video.stub.Rollout(pb.RolloutRequest(session=session, sequences=sequences))
        assert len([node async for node in nodes]) == 3
        await self.video.stub.Delete(pb.DeleteRequest(session=session))


async def test_a_new_version_comes_and_the_old_one_goes_under_live_load_and_no_call_fails(
    start_video: Any, models: Path, tmp_path: Path
) -> None:
    apart = await start_video(models=shutil.copytree(models, tmp_path / "apart"), reload_s=0)
    expected = await walk(apart, await apart.create(), 54)
    video = await start_video(models=models, reload_s=LOOK_S)
    old = await video.create()
    frames = await walk(video, old, 9)
    async with Traffic(video).flowing() as traffic:
        publish(models, TWO)
        await video.until(lambda: serves(video, "2"))
        frames += await walk(video, old, 9)
        assert versions(video) == ["1", "2"]
        explicit = pb.CreateSessionRequest(
            model=common.ModelRef(name="tiny", version="1"), origin=pb.Origin(start="dusk"), seed=7
        )
        pinned = (await video.stub.CreateSession(explicit)).session
        assert pinned.model.version == "1", "it is still there for whoever names it"

        shutil.rmtree(models / "tiny/1")
        await video.until(lambda: [entry.stored.version for entry in video.catalog.newest()] == ["2"])
        await video.until(lambda: any(map(video.catalog.is_leaving, video.catalog)))
        assert (await video.refused(video.stub.CreateSession(explicit))).reason == "MODEL_NOT_FOUND"
        described = await video.stub.GetModel(pb.GetModelRequest(model=pinned.model))
        assert described.model.ref == pinned.model, "whoever has a session of it can ask for the names of its actions"
        frames += await walk(video, old, 9)
        (child,) = (await video.stub.Fork(pb.ForkRequest(session=old, seeds=[7]))).sessions
        assert await walk(video, child.session, 27) == expected[27:], "it forks where it ends"
        frames += await walk(video, old, 27)
        assert frames == expected, "an old session's world does not change"

        for session in (old, pinned.session):
            await video.stub.Delete(pb.DeleteRequest(session=session))
        assert versions(video) == ["1", "2"], "its last session is still there"
        await video.stub.Delete(pb.DeleteRequest(session=child.session))
        await video.until(lambda: versions(video) == ["2"])
        count = traffic.call_count
        await video.until(lambda: traffic.call_count > count + 10)
    assert traffic.seen == {"1", "2"}
    assert (await video.stub.ListModels(pb.ListModelsRequest())).models[0].ref.version == "2"


async def test_an_unloaded_version_leaves_no_thread_and_no_memory_behind(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    gc.disable()  # its pools are freed there and then, not when a collector comes
    try:
        for version in ("2", "3"):
            gone, thread = weakref.ref(video.engine.model), video.engine._thread
            # What answers a repeat is kept, and must not keep the version.
            session = await video.create(chunks=3, request_id=f"create {version}")
            saved = await video.stub.Save(pb.SaveRequest(session=session))
            request = pb.RestoreRequest(snapshot=saved.snapshot, request_id=f"restore {version}")
            twin = (await video.stub.Restore(request)).session.session
            await walk(video, twin, 2)
            publish(models, TinyWorld(version=version))
            await video.until(lambda version=version: serves(video, version))
            shutil.rmtree(models / "tiny" / str(int(version) - 1))
            await video.until(lambda: any(map(video.catalog.is_leaving, video.catalog)))
            for name in (session, twin):
                await video.stub.Delete(pb.DeleteRequest(session=name))
            await video.until(lambda version=version: versions(video) == [version])
            await video.until(lambda thread=thread: not thread.is_alive())
            await video.until(lambda gone=gone: gone() is None)
    finally:
        gc.enable()
    assert sum(thread.name == "engine-tiny" for thread in threading.enumerate()) == 1


def refusals(caplog: pytest.LogCaptureFixture) -> list[dict[str, Any]]:
    return [vars(record) for record in caplog.records if "refused" in record.message]


async def looks(count: int = 4) -> None:
    await asyncio.sleep(count * LOOK_S)


async def test_a_broken_package_is_told_of_once_by_file_and_field_and_read_again_when_it_changes(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    staged = TWO.write(models.parent / "staged")
    manifest = (staged / "model.yaml").read_text()
    (staged / "model.yaml").write_text(manifest.replace("format: 1", "format: 7"))
    folder = staged.rename(models / "tiny/2")
    await video.until(lambda: bool(refusals(caplog)))
    await looks()
    (refusal,) = refusals(caplog)
    assert (refusal["file"], refusal["field"]) == (str(folder / "model.yaml"), "format")
    assert "1" in refusal["expected"]
    assert await newest(video) == "1"
    (folder / "model.yaml").write_text(manifest)
    await video.until(lambda: serves(video, "2"))


async def test_a_package_that_is_copied_file_by_file_is_served_when_it_is_whole(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    staged = TWO.write(models.parent / "staged")
    for path in sorted(staged.rglob("*"), reverse=True):  # model.yaml before the graphs
        if path.is_file() and path.name != "MODEL_CARD.md":  # a package is whole without its card
            copy = models / "tiny/2" / path.relative_to(staged)
            copy.parent.mkdir(parents=True, exist_ok=True)
            half = path.read_bytes()[: path.stat().st_size // 2]
            copy.write_bytes(half)
            await looks(3)
            assert await newest(video) == "1"
            copy.write_bytes(path.read_bytes())
    await video.until(lambda: serves(video, "2"))
    await walk(video, await video.create(), 3)


async def test_a_served_version_that_changes_in_place_is_refused_and_served_as_it_was(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    first = await video.stub.GetModel(pb.GetModelRequest(model=video.model))
    shutil.copy(
        TinyWorld(sampler="euler", window=4, work=1).write(models.parent / "other") / "denoise.onnx", models / "tiny/1"
    )
    await video.until(lambda: bool(refusals(caplog)))
    await looks()
    (refusal,) = refusals(caplog)
    assert (refusal["model"], refusal["version"]) == ("tiny", "1")
    assert await video.stub.GetModel(pb.GetModelRequest(model=video.model)) == first


async def test_a_touched_file_and_a_new_card_are_no_change(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    os.utime(models / "tiny/1/commit.onnx")
    (models / "tiny/1/MODEL_CARD.md").write_text("The card is not the model.\n")
    await looks()
    assert refusals(caplog) == []
    with (models / "tiny/1/commit.onnx").open("ab") as file:  # the looks went on all the while
        file.write(b"\0")
    await video.until(lambda: len(refusals(caplog)) == 1)


async def test_a_file_that_changes_and_keeps_its_size_and_its_time_is_noticed(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    path = models / "tiny/1/commit.onnx"
    stat = path.stat()
    path.write_bytes(path.read_bytes()[::-1])
    os.utime(path, ns=(stat.st_atime_ns, stat.st_mtime_ns))
    await video.until(lambda: len(refusals(caplog)) == 1)


async def test_a_version_is_replaced_at_one_stroke_and_no_call_fails(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    staged = TWO.write(models.parent / "staged")
    async with Traffic(video).flowing() as traffic:
        (models / "tiny/1").rename(models.parent / "old")
        staged.rename(models / "tiny/2")
        await video.until(lambda: serves(video, "2"))
        await video.until(lambda: versions(video) == ["2"])
    assert traffic.seen == {"1", "2"}


async def test_a_version_whose_successor_is_broken_and_that_is_gone_is_let_go(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    publish(models, TinyWorld(name="other"))
    video = await start_video(models=models, reload_s=LOOK_S)
    staged = TWO.write(models.parent / "staged")
    (staged / "commit.onnx").unlink()
    (models / "tiny/1").rename(models.parent / "old")
    staged.rename(models / "tiny/2")
    await video.until(lambda: [entry.stored.name for entry in video.catalog] == ["other"])
    assert [refusal["field"] for refusal in refusals(caplog)] == ["files.commit"]


async def test_a_version_that_one_look_does_not_find_stays(start_video: Any, models: Path) -> None:
    publish(models, TinyWorld(name="other"))
    video = await start_video(models=models, reload_s=0)  # the looks are ours
    catalog = video.catalog
    reload = watched(video, models)
    (models / "tiny").rename(models.parent / "away")
    await reload.look()
    (models.parent / "away").rename(models / "tiny")
    for _ in range(3):
        await reload.look()
    (models / "tiny").rename(models.parent / "away")
    await reload.look()
    assert [entry.stored.name for entry in catalog] == ["other", "tiny"]
    assert not any(map(catalog.is_leaving, catalog))
    await reload.look()
    assert [entry.stored.name for entry in catalog] == ["other"]


async def test_a_repository_that_is_not_there_is_no_order_to_serve_nothing(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    away = models.parent / "unmounted"
    os.rename(models, away)
    await video.until(lambda: any("empty" in record.message for record in caplog.records))
    await looks()
    assert await newest(video) == "1"
    os.rename(away, models)
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    assert versions(video) == ["1", "2"]


async def test_a_version_that_comes_back_while_it_has_sessions_takes_new_ones_again(
    start_video: Any, models: Path
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    session = await video.create()
    (models / "tiny/2").rename(models.parent / "away")
    await video.until(lambda: serves(video, "1"))
    (models.parent / "away").rename(models / "tiny/2")
    await video.until(lambda: serves(video, "2"))
    assert versions(video) == ["1", "2"]
    assert (await video.get(session)).session.model.version == "2"


async def test_a_disk_that_fails_once_keeps_no_version_away(
    start_video: Any, models: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    video = await start_video(models=models, reload_s=0)
    failures: list[OSError] = []

    def failing(function: Callable[[Path], Any]) -> Callable[[Path], Any]:
        def run(folder: Path) -> Any:
            if failures:
                raise failures.pop()
            return function(folder)

        return run

    first = [OSError(errno.EIO, "the disk fails after the package was loaded")]

    def load(folder: Path) -> Served:
        repository = ModelRepository(models, VideoPackage)
        served = load_model(repository.read(folder), video.settings, VideoMetrics(CollectorRegistry()))
        failures.extend(first)
        first.clear()
        return served

    reload, signature = watched(video, models, load), reloading.signature
    monkeypatch.setattr(reloading, "signature", failing(signature))
    publish(models, TWO)
    for _ in range(3):
        await reload.look()
    assert versions(video) == ["1", "2"]

    session = await video.create()
    monkeypatch.setattr(reloading, "package_digest", failing(reloading.package_digest))
    (models / "tiny/2").rename(models.parent / "away")
    for _ in range(2):
        await reload.look()
    assert await newest(video) == "1"
    (models.parent / "away").rename(models / "tiny/2")
    failures.append(OSError(errno.EIO, "the disk fails while a version that is back is compared"))
    # Not in the look that only finds it: `signature` is asked first.
    monkeypatch.setattr(reloading, "signature", signature)
    for _ in range(3):
        await reload.look()
    assert failures == []
    assert await newest(video) == "2"
    await video.stub.Delete(pb.DeleteRequest(session=session))


async def test_a_version_whose_engine_broke_is_unloaded(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    session = await video.create()
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))

    def complete(*_: Any) -> None:
        raise RuntimeError("a bug, in the middle of a tick")

    video.engine.scheduler.complete = complete
    with pytest.raises(grpc.aio.AioRpcError):
        await stepped(video, session, 1)
    assert video.engine.broken
    await video.stub.Delete(pb.DeleteRequest(session=session))
    assert video.engine.busy, "what it had in hand is never put down"
    shutil.rmtree(models / "tiny/1")
    await video.until(lambda: versions(video) == ["2"])


async def test_a_broken_version_does_not_keep_a_replica_from_its_start_and_is_served_when_it_is_mended(
    start_video: Any, models: Path, caplog: pytest.LogCaptureFixture
) -> None:
    folder = publish(models, TWO)
    commit = (folder / "commit.onnx").read_bytes()
    (folder / "commit.onnx").unlink()
    video = await start_video(models=models, reload_s=LOOK_S)
    assert await newest(video) == "1"
    assert (refusals(caplog)[0]["file"], refusals(caplog)[0]["field"]) == (
        str(folder / "model.yaml"),
        "files.commit",
    )
    (folder / "commit.onnx").write_bytes(commit)
    await video.until(lambda: serves(video, "2"))


async def test_what_host_memory_holds_of_a_version_goes_with_it(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    engine, (served,) = video.engine, video.catalog
    tiers, digest = served.worlds.residency.tiers, served.stored.digest
    session = await video.create(chunks=4)

    def spill() -> None:
        with engine.lock:
            served.worlds.residency.spill_idle(engine.pool)

    await asyncio.wrap_future(engine.between_ticks(spill))
    assert tiers.host.shares.block_count(digest) > 0
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    shutil.rmtree(models / "tiny/1")
    await video.until(lambda: any(map(video.catalog.is_leaving, video.catalog)))
    await walk(video, session, 3)  # a spilled session is one too: its blocks come back
    await video.stub.Delete(pb.DeleteRequest(session=session))
    await video.until(lambda: versions(video) == ["2"])
    await video.until(lambda: tiers.host.shares.block_count(digest) == 0)
    tiers.check_integrity()


async def test_a_session_of_a_dead_replica_goes_on_in_a_version_that_is_leaving(
    start_video: Any, models: Path, valkey: Any
) -> None:
    shared = {"models": models, "redis_url": valkey.url}
    dead = await start_video(**shared, replica="video-a", reload_s=0)
    session = await dead.create(chunks=3)
    video = await start_video(**shared, replica="video-b", reload_s=LOOK_S)
    keeper = await video.create()
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    shutil.rmtree(models / "tiny/1")
    await video.until(lambda: any(map(video.catalog.is_leaving, video.catalog)))
    rehome = (("worldtree-rehome", "video-a"),)
    answer = await video.stub.Get(pb.GetRequest(session=session), metadata=rehome)
    assert (answer.session.model.version, answer.session.chunk_index) == ("1", 3)
    await walk(video, session, 3)
    await video.stub.Delete(pb.DeleteRequest(session=keeper))
    assert versions(video) == ["1", "2"]
    await video.stub.Delete(pb.DeleteRequest(session=session))
    await video.until(lambda: versions(video) == ["2"])


async def test_a_session_of_a_version_that_is_there_and_not_loaded_yet_is_asked_for_again(
    start_video: Any, models: Path, valkey: Any
) -> None:
    shared = {"models": models, "redis_url": valkey.url, "reload_s": 0}
    late = await start_video(**shared, replica="video-b")
    folder = publish(models, TWO)
    early = await start_video(**shared, replica="video-a")
    session, orphan = await early.create(chunks=3), await early.create()
    rehome = (("worldtree-rehome", "video-a"),)

    def asked(session: str) -> Any:
        return late.stub.Get(pb.GetRequest(session=session), metadata=rehome)

    refusal = await late.refused(asked(session))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.UNAVAILABLE, "MODEL_NOT_LOADED")
    assert refusal.details["RetryInfo"].retry_delay.ToMilliseconds() == 1000

    away = folder.rename(models.parent / "away")
    assert (await late.refused(asked(orphan))).code is grpc.StatusCode.NOT_FOUND, "nobody will load it"
    away.rename(folder)

    reload = watched(late, models)
    for _ in range(2):
        await reload.look()
    answer = (await asked(session)).session
    assert (answer.model.version, answer.chunk_index) == ("2", 3)
    for each in (session, orphan):
        await late.stub.Delete(pb.DeleteRequest(session=each), metadata=rehome)


async def test_a_create_that_is_repeated_when_another_version_is_the_newest_gets_its_session(
    start_video: Any, models: Path
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    request = pb.CreateSessionRequest(model=video.model, origin=pb.Origin(start="dusk"), request_id="once")
    first = await video.stub.CreateSession(request)
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    again = await video.stub.CreateSession(request)
    assert (again.session.session, again.session.model.version) == (first.session.session, "1")


async def test_gauges_count_all_versions_of_a_model_and_readiness_asks_those_that_take_sessions(
    start_video: Any, models: Path
) -> None:
    video = await start_video(models=models, reload_s=LOOK_S)
    await video.create()
    publish(models, TWO)
    await video.until(lambda: serves(video, "2"))
    await video.create()

    one, two = (entry.worlds.engine.pool.held_count for entry in video.catalog)
    expected = {
        'worldtree_sessions{model="tiny",state="idle"} 2.0',
        f'worldtree_kv_blocks{{model="tiny",state="held",tier="pool"}} {one + two}.0',
        'worldtree_model_reloads_total{model="tiny",result="loaded"} 1.0',
    }

    async def shown() -> bool:
        url = f"http://{video.server.metrics_address}/metrics"
        page = await asyncio.to_thread(lambda: urllib.request.urlopen(url, timeout=5).read().decode())
        return expected <= set(page.splitlines())

    await video.until(shown)
    shutil.rmtree(models / "tiny/1")
    await video.until(lambda: any(map(video.catalog.is_leaving, video.catalog)))
    video.engine.broken = True  # the version that is leaving
    assert video.catalog.has_room()
    video.engine.broken = False
