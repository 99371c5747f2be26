"""The picture of a world tree: a frame a node, an action on each edge, a lane a branch."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from enum import Enum
from itertools import pairwise

from PIL import Image, ImageDraw

from worldtree.cli.pictures.ink import (
    BRANCH_COLOURS,
    FAINT,
    HAIRLINE,
    INK,
    PAPER,
    Colour,
    arrow_head,
    fade,
    fit,
    font,
    mix,
    picture_of,
    text_width,
)
from worldtree.types import Frames

MARGIN_PX = 48
TITLE_PX = 104
LEGEND_PX = 56
EDGE_PX = 80  # from one frame to the next: room for an arrow with an action's name
LANE_GAP_PX = 40
IMAGINED_GAP_PX = 14
BORDER_PX = 3
LABEL_PX = 17
THUMB_PX = 112


class Kind(Enum):
    """What became of a chunk."""

    LIVED = "lived"
    REWOUND = "rewound"
    RESTORED = "restored from a snapshot"
    IMAGINED = "imagined by a rollout"


@dataclass(eq=False, slots=True)
class Node:
    """A point of a world's history: the frame it shows, and the action that led to it."""

    frame: Frames  # [height, width, 3]
    action: str = ""
    kind: Kind = Kind.LIVED
    label: str = ""
    colour: Colour = INK
    children: "list[Node]" = field(default_factory=list)
    # Where its centre goes; set by the layout.
    x: float = 0.0
    y: float = 0.0

    def grow(self, actions: Sequence[str], frames: Sequence[Frames], **look: object) -> "Node":
        """A chain of nodes below this one; the last of it."""
        node = self
        for action, frame in zip(actions, frames, strict=True):
            child = Node(
                frame,
                action,
                kind=look.get("kind", self.kind),  # type: ignore[arg-type]
                colour=look.get("colour", self.colour),  # type: ignore[arg-type]
            )
            node.children.append(child)
            node = child
        return node

    def walk(self) -> "Iterator[Node]":
        yield self
        for child in self.children:
            yield from child.walk()


def draw_tree(root: Node, *, title: str, subtitle: str) -> Image.Image:
    """The whole tree, left to right in time."""
    return TreePicture(root, title, subtitle).draw()


class TreePicture:
    """Lays the tree out (time is x, each leaf has a lane) and paints it."""

    def __init__(self, root: Node, title: str, subtitle: str) -> None:
        self._root = root
        self._title = title
        self._subtitle = subtitle
        side = int(max(root.frame.shape[:2]))
        self._scale = max(THUMB_PX // side, 1)
        self._small_scale = max(THUMB_PX // 2 // side, 1)
        self._lane_bottom = float(MARGIN_PX + TITLE_PX)
        self._place(root, 0, 0.0)
        self._nodes = list(root.walk())

    def draw(self) -> Image.Image:
        right = max(node.x + self._half_width(node) for node in self._nodes)
        width = round(max(right, 900.0)) + MARGIN_PX
        height = round(self._lane_bottom) + LEGEND_PX + MARGIN_PX
        image = Image.new("RGB", (width, height), PAPER)
        draw = ImageDraw.Draw(image)
        draw.text((MARGIN_PX, MARGIN_PX - 12), self._title, INK, font(34, bold=True))
        draw.text((MARGIN_PX, MARGIN_PX + 34), self._subtitle, FAINT, font(18))
        for node in self._nodes:
            for child in node.children:
                self._edge(draw, node, child)
        for node in self._nodes:
            self._thumbnail(image, draw, node)
        self._legend(draw, height - MARGIN_PX - LEGEND_PX / 2)
        return image

    def _place(self, node: Node, depth: int, lane_half: float) -> None:
        """Places a subtree; `lane_half` is half the height of the tallest ancestor in the lane that leads to `node`."""
        node.x = MARGIN_PX + THUMB_PX / 2 + depth * (THUMB_PX + EDGE_PX)
        lane_half = max(lane_half, self._half_height(node))
        if not node.children:
            # A new lane, below all lanes so far; a label needs room above it.
            small = lane_half <= self._root.frame.shape[0] * self._small_scale / 2
            node.y = self._lane_bottom + (IMAGINED_GAP_PX if small else LANE_GAP_PX) + lane_half
            self._lane_bottom = node.y + lane_half
            return
        # Straight on along the child that is nearest to the middle, so that the trunk runs through the tree.
        lived = [child for child in node.children if child.kind is not Kind.IMAGINED] or node.children
        straight = lived[(len(lived) - 1) // 2]
        for child in node.children:
            self._place(child, depth + 1, lane_half if child is straight else 0.0)
        node.y = straight.y

    def _edge(self, draw: ImageDraw.ImageDraw, parent: Node, child: Node) -> None:
        colour = self._line_colour(child)
        begin = (parent.x + self._half_width(parent) + BORDER_PX, parent.y)
        end = (child.x - self._half_width(child) - BORDER_PX - 3, child.y)
        # Up or down first, close to the parent, then along the child's own lane: there its action has room.
        bend = parent.x + THUMB_PX / 2 + 9
        points = [begin, (bend, begin[1]), (bend, end[1]), end]
        if child.kind in (Kind.REWOUND, Kind.RESTORED):
            _dashed(draw, points, colour)
        else:
            draw.line(points, colour, 3, joint="curve")
        arrow_head(draw, (end[0] + 3, end[1]), colour)
        face = font(13 if child.kind is Kind.IMAGINED else 14)
        room = end[0] - bend - 4
        text = fit(child.action, face, room)
        middle = bend + (end[0] - bend) / 2 - 2
        draw.text((middle, end[1] - 4), text, mix(colour, INK, 0.25), face, anchor="ms")

    def _thumbnail(self, image: Image.Image, draw: ImageDraw.ImageDraw, node: Node) -> None:
        picture = picture_of(node.frame, self._scale_of(node))
        if node.kind is Kind.REWOUND:
            picture = fade(picture, 0.6)
        left, top = round(node.x - picture.width / 2), round(node.y - picture.height / 2)
        frame = (
            left - BORDER_PX,
            top - BORDER_PX,
            left + picture.width + BORDER_PX - 1,
            top + picture.height + BORDER_PX - 1,
        )
        draw.rectangle(frame, self._line_colour(node))
        image.paste(picture, (left, top))
        if node.label:
            self._label(draw, node, top - BORDER_PX)

    def _label(self, draw: ImageDraw.ImageDraw, node: Node, top: float) -> None:
        """Above the node, on a patch of paper so that no line runs through it."""
        face = font(LABEL_PX, bold=True)
        left = node.x - self._half_width(node)
        width = text_width(node.label, face)
        draw.rectangle((left - 4, top - LABEL_PX - 10, left + width + 4, top - 4), PAPER)
        draw.text((left, top - 8), node.label, node.colour, face, anchor="ls")

    def _legend(self, draw: ImageDraw.ImageDraw, y: float) -> None:
        draw.line([(MARGIN_PX, y - LEGEND_PX / 2), (MARGIN_PX + 400, y - LEGEND_PX / 2)], HAIRLINE, 1)
        x = float(MARGIN_PX)
        present = {node.kind for node in self._nodes}
        for kind in Kind:
            if kind not in present:
                continue
            colour = FAINT if kind is Kind.REWOUND else INK
            points = [(x, y), (x + 44, y)]
            if kind in (Kind.REWOUND, Kind.RESTORED):
                _dashed(draw, points, colour)
            else:
                draw.line(points, mix(colour, PAPER, 0.5 if kind is Kind.IMAGINED else 0.0), 3)
            draw.text((x + 54, y), kind.value, INK, font(16), anchor="lm")
            x += 54 + text_width(kind.value, font(16)) + 40

    def _line_colour(self, node: Node) -> Colour:
        faded = {Kind.REWOUND: 0.55, Kind.IMAGINED: 0.45}
        return mix(node.colour, PAPER, faded.get(node.kind, 0.0))

    def _scale_of(self, node: Node) -> int:
        return self._small_scale if node.kind is Kind.IMAGINED else self._scale

    def _half_width(self, node: Node) -> float:
        return float(node.frame.shape[1] * self._scale_of(node)) / 2

    def _half_height(self, node: Node) -> float:
        return float(node.frame.shape[0] * self._scale_of(node)) / 2


def branch_colour(index: int) -> Colour:
    return BRANCH_COLOURS[index % len(BRANCH_COLOURS)]


def _dashed(draw: ImageDraw.ImageDraw, points: Sequence[tuple[float, float]], colour: Colour) -> None:
    dash_px, gap_px = 7.0, 5.0
    for (x0, y0), (x1, y1) in pairwise(points):
        length = max(abs(x1 - x0), abs(y1 - y0))
        done = 0.0
        while done < length:
            a, b = done / length, min(done + dash_px, length) / length
            draw.line([(x0 + (x1 - x0) * a, y0 + (y1 - y0) * a), (x0 + (x1 - x0) * b, y0 + (y1 - y0) * b)], colour, 3)
            done += dash_px + gap_px
