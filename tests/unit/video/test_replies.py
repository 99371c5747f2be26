"""What clients are told of a model and its frames."""

from typing import Any

from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.video_package import VideoPackage
from worldtree_video import replies
from worldtree_video.catalog import Served

PAIRS = VideoPackage.model_validate(TinyWorld(frames_per_chunk=2).manifest())


def test_a_model_is_described_whole(serve: Any) -> None:
    served: Served = serve(TinyWorld(frames_per_chunk=2))
    model = replies.from_model(served)
    assert (model.ref.name, model.ref.version, len(model.ref.digest)) == ("tiny", "1", 64)
    assert (model.height_px, model.width_px, model.fps, model.frames_per_chunk) == (4, 6, 10, 2)
    assert list(model.action_space.discrete.names) == ["left", "right", "stay", "poison"]
    assert (list(model.nfe_choices), model.nfe_default, model.window_chunks) == ([1, 2], 2, 4)
    assert model.block_bytes == 4 * 2 * 2 * 3 * 4
    assert [(start.name, start.frame_count) for start in model.starts] == [("dawn", 2), ("dusk", 6)]
    assert (model.license, model.prompt_supported) == ("MIT", False)


def test_a_continuous_model_tells_its_box(serve: Any) -> None:
    space = replies.from_model(serve(TinyWorld(action_size=3))).action_space.continuous
    assert (space.size, space.low, space.high) == (3, -1, 1)


def test_the_last_frame_is_the_last_of_a_chunk() -> None:
    pixels = bytes(range(144))
    last = replies.from_last_frame(pixels, PAIRS)
    assert list(last.tensor.shape) == [1, 4, 6, 3]
    assert last.tensor.data == pixels[72:]
