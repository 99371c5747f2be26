"""What the pictures promise: nothing overlaps, nothing is cut off, frames are shown pixel for pixel."""

from itertools import combinations
from pathlib import Path

import av
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from worldtree import InvalidRequest
from worldtree.cli.half_blocks import fit_pixels
from worldtree.cli.pictures.film import Film, Panel
from worldtree.cli.pictures.sheet import draw_sheet
from worldtree.cli.pictures.tree import Kind, Node, TreePicture, draw_tree
from worldtree.media import save_frames
from worldtree.types import Rollout


def frame(seed: int, height: int = 56, width: int = 56) -> np.ndarray:
    return np.random.default_rng(seed).integers(0, 256, (height, width, 3), dtype=np.uint8)


@st.composite
def trees(draw: st.DrawFn) -> Node:
    root = Node(frame(0), label="start")
    nodes = [root]
    for index in range(draw(st.integers(0, 14))):
        parent = draw(st.sampled_from(nodes))
        kind = draw(st.sampled_from(Kind))
        nodes.append(parent.grow(["forward"], [frame(index + 1)], kind=kind))
    return root


@settings(max_examples=60, deadline=None)
@given(trees())
def test_no_two_thumbnails_of_a_tree_overlap_and_all_are_on_the_picture(root: Node) -> None:
    picture = TreePicture(root, "title", "subtitle")
    image = picture.draw()
    boxes = []
    for node in root.walk():
        half_width, half_height = picture._half_width(node), picture._half_height(node)
        box = (node.x - half_width, node.y - half_height, node.x + half_width, node.y + half_height)
        assert box[0] >= 0
        assert box[1] >= 0
        assert box[2] <= image.width
        assert box[3] <= image.height
        boxes.append(box)
    for (left, top, right, bottom), (left2, top2, right2, bottom2) in combinations(boxes, 2):
        assert right <= left2 or right2 <= left or bottom <= top2 or bottom2 <= top


def test_a_tree_shows_its_frames_pixel_for_pixel() -> None:
    root = Node(frame(1), label="start")
    end = root.grow(["left"], [frame(2)])
    pixels = np.asarray(draw_tree(root, title="t", subtitle="s"))
    left, top = round(end.x - 56), round(end.y - 56)
    np.testing.assert_array_equal(pixels[top : top + 112, left : left + 112], frame(2).repeat(2, 0).repeat(2, 1))


def test_frames_larger_than_a_thumbnail_still_make_a_tree() -> None:
    root = Node(frame(1, 240, 320))
    root.grow(["left"], [frame(2, 240, 320)])
    assert draw_tree(root, title="t", subtitle="s").width > 640


def test_a_film_keeps_its_size_whatever_the_panels() -> None:
    film = Film(frame(0))
    panels = [Panel(frame(index), f"future {index}", "forward") for index in range(3)]
    film.add("one", panels[0], hold=2)
    film.add("three", *panels)
    rendered = list(film.render())
    assert len(rendered) == film.shot_count == 3
    assert len({pixels.shape for pixels in rendered}) == 1
    assert rendered[0].shape[0] % 2 == rendered[0].shape[1] % 2 == 0


def test_a_chunk_of_many_frames_moves_while_it_is_held() -> None:
    film = Film(frame(0))
    chunk = np.stack([frame(seed) for seed in range(4)])
    film.add("moving", Panel(chunk, "live", "forward"), Panel(frame(9), "still", "wait"), hold=4)
    film.add("slowly", Panel(chunk[:2], "live", "forward"), hold=4)
    rendered = list(film.render())
    assert len(rendered) == 8
    assert len({pixels.tobytes() for pixels in rendered[:4]}) == 4
    slow = [pixels.tobytes() for pixels in rendered[4:]]
    assert slow[0] == slow[1] != slow[2] == slow[3]


def test_a_sheet_has_a_row_for_each_rollout() -> None:
    rollouts = [
        Rollout(("left",) * count, np.stack([frame(i) for i in range(count)]), "hash", None, ()) for count in (1, 3)
    ]
    one, two = draw_sheet(frame(9), rollouts[:1]), draw_sheet(frame(9), rollouts)
    assert two.height > one.height
    assert two.width > one.width


@pytest.mark.parametrize(("height", "width"), [(56, 56), (57, 31)])
def test_a_saved_film_has_every_frame_at_an_even_size(tmp_path: Path, height: int, width: int) -> None:
    frames = np.stack([np.full((height, width, 3), value, np.uint8) for value in (0, 120, 250)])
    path = save_frames(frames, tmp_path / "deep" / "clip.mp4", fps=10, scale=1)
    with av.open(str(path)) as film:
        decoded = [image.to_ndarray(format="rgb24") for image in film.decode(video=0)]
    assert len(decoded) == 3
    for image, value in zip(decoded, (0, 120, 250), strict=True):
        assert image.shape == (height + height % 2, width + width % 2, 3)
        assert abs(int(image[height // 2, width // 2].mean()) - value) < 12


def test_gif_and_png(tmp_path: Path) -> None:
    frames = np.stack([frame(seed) for seed in range(5)])
    with Image.open(save_frames(frames, tmp_path / "clip.gif", scale=2)) as image:
        assert image.n_frames == 5
        assert image.size == (112, 112)
    with Image.open(save_frames(frames, tmp_path / "clip.png")) as image:
        np.testing.assert_array_equal(np.asarray(image)[:56, :56], frames[0])


@pytest.mark.parametrize(("path", "given_"), [("clip.avi", {}), ("clip.gif", {"scale": 0}), ("clip.gif", {"fps": 0})])
def test_what_cannot_be_saved_is_refused(tmp_path: Path, path: str, given_: dict[str, int]) -> None:
    with pytest.raises(InvalidRequest):
        save_frames(np.stack([frame(0)]), tmp_path / path, **given_)


@given(st.integers(1, 200), st.integers(1, 200), st.integers(1, 80), st.integers(1, 80))
def test_half_blocks_fit_the_terminal(columns: int, rows: int, height: int, width: int) -> None:
    pixels = fit_pixels(np.zeros((height, width, 3), np.uint8), columns=columns, rows=rows)
    assert pixels.shape[0] % 2 == 0
    assert pixels.shape[1] <= max(columns, 1)
    assert pixels.shape[0] <= max(2 * rows, 2)


def test_half_blocks_keep_whole_pixels_where_there_is_room() -> None:
    pixels = frame(3)
    np.testing.assert_array_equal(fit_pixels(pixels, columns=60, rows=40), pixels)
    np.testing.assert_array_equal(fit_pixels(pixels, columns=130, rows=60), pixels.repeat(2, axis=0).repeat(2, axis=1))
