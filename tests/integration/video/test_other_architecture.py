"""A third party's model drops in: a convolutional recurrent world without attention, whose state rides in the blocks.

Latents, three frames a chunk, actions of three numbers, a window of one block: nothing like the shipped model, and the
engine knows nothing of it. Once written by hand as ONNX, and once exported from PyTorch as the documentation teaches;
beside them the transformer of the documentation.
"""

import asyncio
import os
import re
import subprocess
import sys
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnx.parser
import pytest
import yaml
from onnx import numpy_helper
from PIL import Image
from worldtree.common.v1 import common_pb2 as common
from worldtree.video.v1 import video_generator_pb2 as pb
from worldtree_video.tools.validate import validate

DOCUMENT = Path(__file__).parents[3] / "docs/bring-your-own-model.md"
EXPORTED = [
    pytest.mark.skipif(not (find_spec("torch") and find_spec("onnxscript")), reason="needs the train extra"),
    pytest.mark.timeout(600),
]
FRAMES, SIDE, CELLS, LATENT, STATE = 3, 16, 4, 4, 8
HEADER = '<ir_version: 10, opset_import: ["" : 18]>\n'
SEEN = (
    "float[batch,3] action, int64[batch] position, float[blocks,1,2,1,16,4] pool, int64[batch,1] table, "
    "bool[batch,1] key_mask"
)
RECALL = """
    before = Sub(position, one)
    newest = Max(before, zero)
    place = Unsqueeze(newest, axis_1)
    listed = GatherElements<axis=1>(table, place)
    block = Squeeze(listed, axis_1)
    held = Gather<axis=0>(pool, block)
    remembered = Reshape(held, as_state)
    there = GatherElements<axis=1>(key_mask, place)
    anything = Unsqueeze(there, axes_23)
    state = Where(anything, remembered, nothing)
    wish = Unsqueeze(action, axes_23)
"""
ENCODE = """encode (float[batch,3,16,16,3] frames) => (float[batch,4,4,4] latents) {
    planes = Transpose<perm=[0,1,4,2,3]>(frames)
    stacked = Reshape(planes, as_planes)
    cells = Conv<strides=[4,4]>(stacked, down)
    bounded = Tanh(cells)
    latents = Transpose<perm=[0,2,3,1]>(bounded)
}"""
DECODE = """decode (float[batch,4,4,4] latents) => (float[batch,3,16,16,3] frames) {
    cells = Transpose<perm=[0,3,1,2]>(latents)
    painted = ConvTranspose<strides=[4,4]>(cells, up)
    bounded = Tanh(painted)
    planes = Reshape(bounded, as_frames)
    frames = Transpose<perm=[0,1,3,4,2]>(planes)
}"""
DENOISE = f"""denoise (float[batch,4,4,4] x, float[batch] t, {SEEN}) => (float[batch,4,4,4] x0) {{{RECALL}
    level = Unsqueeze(t, axes_123)
    noisy = Transpose<perm=[0,3,1,2]>(x)
    of_noise = Conv<pads=[1,1,1,1]>(noisy, draw_x)
    of_state = Conv<pads=[1,1,1,1]>(state, draw_state)
    of_wish = Conv(wish, draw_action)
    of_level = Mul(level, draw_level)
    drawn = Sum(of_noise, of_state, of_wish, of_level)
    clean = Tanh(drawn)
    x0 = Transpose<perm=[0,2,3,1]>(clean)
}}"""
COMMIT = f"""commit (float[batch,4,4,4] x0, int64[batch] slot, {SEEN})
    => (float[blocks,1,2,1,16,4] pool_out) {{{RECALL}
    clean = Transpose<perm=[0,3,1,2]>(x0)
    gate_x = Conv<pads=[1,1,1,1]>(clean, keep_x)
    gate_action = Conv(wish, keep_action)
    open = Sum(gate_x, gate_action)
    gate = Sigmoid(open)
    news_x = Conv<pads=[1,1,1,1]>(clean, news_clean)
    news_state = Conv<pads=[1,1,1,1]>(state, news_before)
    news_action = Conv(wish, news_wish)
    heard = Sum(news_x, news_state, news_action)
    news = Tanh(heard)
    change = Sub(news, state)
    moved = Mul(gate, change)
    after = Add(state, moved)
    written = Reshape(after, as_block)
    index = Unsqueeze(slot, axis_1)
    pool_out = ScatterND(pool, index, written)
}}"""


def constants() -> dict[str, np.ndarray]:
    dice = np.random.default_rng(5)

    def kernel(*shape: int) -> np.ndarray:
        return (dice.normal(0, 1, shape) * 1.5 / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    return {
        "down": kernel(LATENT, 3 * FRAMES, 4, 4),
        "up": kernel(LATENT, 3 * FRAMES, 4, 4),
        "draw_x": kernel(LATENT, LATENT, 3, 3) * np.float32(0.3),
        "draw_state": kernel(LATENT, STATE, 3, 3),
        "draw_action": kernel(LATENT, 3, 1, 1),
        "draw_level": kernel(1, LATENT, 1, 1),
        "keep_x": kernel(STATE, LATENT, 3, 3),
        "keep_action": kernel(STATE, 3, 1, 1),
        "news_clean": kernel(STATE, LATENT, 3, 3),
        "news_before": kernel(STATE, STATE, 3, 3),
        "news_wish": kernel(STATE, 3, 1, 1),
        "as_planes": np.array([-1, 3 * FRAMES, SIDE, SIDE]),
        "as_frames": np.array([-1, FRAMES, 3, SIDE, SIDE]),
        "as_state": np.array([-1, STATE, CELLS, CELLS]),
        "as_block": np.array([-1, 1, 2, 1, CELLS * CELLS, STATE // 2]),
        "one": np.array(1),
        "zero": np.array(0),
        "nothing": np.array(0, np.float32),
        "axis_1": np.array([1]),
        "axes_23": np.array([2, 3]),
        "axes_123": np.array([1, 2, 3]),
    }


MANIFEST = {
    "format": 1,
    "kind": "video",
    "name": "dunes",
    "version": "1",
    "description": "A recurrent world.",
    "license": "MIT",
    "frame": {"height_px": SIDE, "width_px": SIDE, "fps": 12.0},
    "frames_per_chunk": FRAMES,
    "latent": {"shape": [CELLS, CELLS, LATENT]},
    "action": {"kind": "continuous", "size": 3, "low": -1.0, "high": 1.0},
    "kv": {
        "layers": 1,
        "heads": 1,
        "tokens": CELLS * CELLS,
        "head_dim": STATE // 2,
        "window": 1,
        "state_tokens": CELLS * CELLS,
    },
    "sampler": {"kind": "renoise", "default_nfe": 2, "schedules": {1: [1.0], 2: [1.0, 0.5]}},
    "files": {graph: f"{graph}.onnx" for graph in ("denoise", "commit", "encode", "decode")},
    "starts": [{"name": "first", "file": "first.png"}],
}


def write_by_hand(repository: Path) -> Path:
    """The package from the texts above."""
    folder = repository / "dunes/1"
    folder.mkdir(parents=True)
    known = constants()
    for text in (ENCODE, DECODE, DENOISE, COMMIT):
        model = onnx.parser.parse_model(HEADER + text)
        used = {name for node in model.graph.node for name in node.input}
        model.graph.initializer.extend(
            numpy_helper.from_array(array, name) for name, array in known.items() if name in used
        )
        onnx.checker.check_model(model)
        onnx.save(model, str(folder / f"{model.graph.name}.onnx"))
    picture = np.random.default_rng(0).integers(0, 256, (SIDE, FRAMES * SIDE, 3), np.uint8)
    Image.fromarray(picture).save(folder / "first.png")
    (folder / "model.yaml").write_text(yaml.safe_dump(MANIFEST, sort_keys=False))
    (folder / "MODEL_CARD.md").write_text("# dunes\nUntrained.\n")
    return folder


def documented(language: str) -> list[str]:
    """The code blocks of the documentation in a language."""
    return re.findall(rf"^```{language}\n(.*?)^```$", DOCUMENT.read_text(), re.MULTILINE | re.DOTALL)


def follow_the_documentation(work: Path, more: str) -> None:
    """Runs its commands in their order, up to the one that serves: they leave a repository `models`. `more`: flags of
    the first.
    """
    commands = [line[2:] for block in documented("console") for line in block.splitlines() if line.startswith("$ ")]
    serving = commands.index("worldtree up --models ../models")
    commands[0] += more
    environment = {**os.environ, "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}", "OMP_NUM_THREADS": "1"}
    subprocess.run(
        ["sh", "-e", "-c", "\n".join(commands[:serving])], cwd=work, env=environment, check=True, timeout=500
    )


@pytest.fixture(
    scope="module",
    params=[
        "by hand",
        pytest.param("from torch", marks=EXPORTED),
        pytest.param("attention from torch", marks=EXPORTED),
    ],
)
def models(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A repository with the package, made once."""
    work = tmp_path_factory.mktemp(request.param.replace(" ", "-"))
    if request.param == "by hand":
        write_by_hand(work / "models")
    else:
        follow_the_documentation(work, " --attention" if "attention" in request.param else "")
    return work / "models"


def wishes(count: int, seed: int = 1) -> list[pb.Action]:
    dice = np.random.default_rng(seed)
    return [pb.Action(vector=pb.Action.Vector(values=dice.uniform(-1, 1, 3))) for _ in range(count)]


async def begin(video: Any, seed: int = 7, **fields: Any) -> str:
    request = pb.CreateSessionRequest(
        model=common.ModelRef(name="dunes"), origin=pb.Origin(start="first"), seed=seed, **fields
    )
    return str((await video.stub.CreateSession(request)).session.session)


async def walk(video: Any, session: str, actions: Sequence[pb.Action]) -> list[bytes]:
    """Frames of each chunk, one call each, so that concurrent walks meet in ticks."""
    frames = []
    for action in actions:
        answer = await video.stub.Step(pb.StepRequest(session=session, actions=[action]))
        frames.append(bytes(answer.chunks[0].frames.tensor.data))
    return frames


def test_it_is_valid(models: Path) -> None:
    report = validate(models / "dunes/1")
    assert report.valid, report.findings


async def test_it_is_served_with_its_own_frames_and_actions(start_video: Any, models: Path) -> None:
    video = await start_video(models=models)
    (model,) = (await video.stub.ListModels(pb.ListModelsRequest())).models
    assert model.frames_per_chunk == 3
    assert model.window_chunks == (4 if "attention" in models.parent.name else 1)
    session = await begin(video)
    answer = await video.stub.Step(pb.StepRequest(session=session, actions=wishes(1)))
    side = model.height_px
    assert list(answer.chunks[0].frames.tensor.shape) == [3, side, side, 3]


async def test_what_it_does_follows_from_its_actions_and_what_it_remembers(start_video: Any, models: Path) -> None:
    video = await start_video(models=models)
    one, two, other = [await begin(video) for _ in range(3)]
    same = wishes(6)
    frames = await walk(video, one, same)
    assert await walk(video, two, same) == frames
    changed = [*wishes(1, seed=2), *same[1:]]
    moved = await walk(video, other, changed)
    assert moved[0] != frames[0], "another action makes another chunk"
    # Where the window is one chunk, only the state can know of the first action: chunk 3 was steered alike.
    assert moved[3] != frames[3], "it remembers"


async def test_it_is_bit_identical_alone_and_in_a_batch(start_video: Any, models: Path) -> None:
    video = await start_video(models=models, max_batch=4)
    count = 6
    alone = [await walk(video, await begin(video, seed), wishes(8, seed)) for seed in range(count)]
    crowd = await start_video(models=models, max_batch=4)
    sessions = [await begin(crowd, seed) for seed in range(count)]
    together = await asyncio.gather(*(walk(crowd, session, wishes(8, seed)) for seed, session in enumerate(sessions)))
    assert together == alone
    ticks = crowd.engine.scheduler.ticks
    assert max(tick.step_count for tick in ticks) > 1, "no two of them ever shared a tick"


@pytest.mark.parametrize("reserve_chunks", [16, 0])
async def test_it_forks_and_rewinds(start_video: Any, models: Path, reserve_chunks: int) -> None:
    video = await start_video(models=models, reserve_chunks=reserve_chunks)
    actions = wishes(10)
    session = await begin(video)
    frames = await walk(video, session, actions[:6])
    (child,) = (await video.stub.Fork(pb.ForkRequest(session=session, seeds=[7]))).sessions
    expected = await walk(video, session, actions[6:])
    assert await walk(video, child.session, actions[6:]) == expected, "a fork goes on as its parent does"
    await video.stub.Rewind(pb.RewindRequest(session=session, chunk_count=7))
    again = await walk(video, session, actions[3:])
    assert again == [*frames[3:], *expected], "what is done again after a rewind is the same"


async def test_it_is_restored_at_another_server_bit_for_bit(start_video: Any, models: Path) -> None:
    video, elsewhere = await start_video(models=models), await start_video(models=models)
    session = await begin(video)
    await walk(video, session, wishes(5))
    saved = await video.stub.Save(pb.SaveRequest(session=session, include_data=True))
    restored = await elsewhere.stub.Restore(pb.RestoreRequest(data=saved.data))
    assert restored.bit_identical
    more = wishes(5, seed=3)
    assert await walk(elsewhere, restored.session.session, more) == await walk(video, session, more)


async def test_its_futures_are_imagined_and_played(start_video: Any, models: Path) -> None:
    video = await start_video(models=models)
    session = await begin(video)
    actions = wishes(3)
    sequences = [pb.ActionSequence(actions=actions), pb.ActionSequence(actions=[actions[0], *wishes(1, seed=9)])]
    nodes = [node async for node in video.stub.Rollout(pb.RolloutRequest(session=session, sequences=sequences))]
    assert len(nodes) == 4, "the common first chunk is made once"
    (imagined,) = (node.chunk.frames for node in nodes if node.depth == 0)
    call = video.stub.Play()
    await call.write(pb.PlayRequest(session=session, begin=pb.PlayRequest.Begin(actions=actions, fps=60)))
    await call.done_writing()
    played = [message.played.chunk.frames async for message in call if message.HasField("played")]
    assert len(played) == 3
    assert played[0] == imagined, "what was imagined happens"


@pytest.mark.parametrize("storage", [pb.KvPolicy.STORAGE_FP16, pb.KvPolicy.STORAGE_INT8])
async def test_its_blocks_bear_fewer_bits(start_video: Any, models: Path, storage: int) -> None:
    video = await start_video(models=models)
    session = await begin(video, kv=pb.KvPolicy(storage=storage))
    frames = await walk(video, session, wishes(4))
    (child,) = (await video.stub.Fork(pb.ForkRequest(session=session, seeds=[7]))).sessions
    assert await walk(video, child.session, wishes(2)) == await walk(video, session, wishes(2))
    assert len(set(frames)) == 4


async def test_the_program_of_the_documentation_runs(start_video: Any, models: Path) -> None:
    video = await start_video(models=models)
    (program,) = (block for block in documented("python") if "worldtree.Client" in block)
    program = program.replace("localhost:7070", video.server.address)
    await asyncio.to_thread(exec, compile(program, DOCUMENT.name, "exec"), {})
