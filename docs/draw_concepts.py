"""Draws the pictures of docs/concepts.md: python docs/draw_concepts.py"""

from pathlib import Path

FOLDER = Path(__file__).parent
INK, GREY = "#1f2933", "#8592a0"
COLOURS = {"client": "#fde8c8", "ours": "#d9e8fb", "shared": "#d8f0dc", "store": "#eadcf5", "plain": "#eef1f4"}


class Picture:
    def __init__(self, width: int, height: int, title: str) -> None:
        self._parts = [
            f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {height}" width="{width}" height="{height}" '
            f'role="img" font-family="sans-serif" font-size="14" fill="{INK}">',
            f"<title>{title}</title>",
            '<defs><marker id="tip" viewBox="0 0 8 8" refX="7" refY="4" markerWidth="8" markerHeight="8" '
            f'orient="auto-start-reverse"><path d="M0 0L8 4L0 8z" fill="{GREY}"/></marker></defs>',
            f'<rect width="{width}" height="{height}" rx="8" fill="white"/>',
        ]

    def box(self, x: int, y: int, width: int, height: int, colour: str, *lines: str) -> None:
        self._parts.append(
            f'<rect x="{x}" y="{y}" width="{width}" height="{height}" rx="6" fill="{COLOURS[colour]}" stroke="{GREY}"/>'
        )
        top = y + height / 2 - 9 * (len(lines) - 1) + 5
        for index, line in enumerate(lines):
            self.text(x + width / 2, top + 18 * index, line, "middle")

    def text(self, x: float, y: float, text: str, anchor: str = "start", colour: str = INK) -> None:
        self._parts.append(f'<text x="{x:g}" y="{y:g}" text-anchor="{anchor}" fill="{colour}">{text}</text>')

    def arrow(self, x: int, y: int, to_x: int, to_y: int, *, both: bool = False) -> None:
        start = ' marker-start="url(#tip)"' if both else ""
        line = f'<path d="M{x} {y}L{to_x} {to_y}" stroke="{GREY}" stroke-width="1.5" marker-end="url(#tip)"{start}/>'
        self._parts.append(line)

    def save(self, name: str) -> None:
        (FOLDER / name).write_text("\n".join([*self._parts, "</svg>"]) + "\n")


def system() -> None:
    """Who asks whom."""
    picture = Picture(760, 330, "Clients reach gateways, gateways the services, and those that keep something Redis")
    for y, name in ((40, "programs"), (110, "robots"), (180, "Triton clients")):
        picture.box(20, y, 130, 44, "client", name)
        picture.arrow(152, y + 22, 218, 132)
    for y in (80, 136):
        picture.box(220, y, 120, 44, "ours", "gateway")
    services = ("video", "video", "multitask", "reward", "navigator")
    for index, name in enumerate(services):
        y = 20 + 52 * index
        picture.box(440, y, 120, 40, "ours", name)
        picture.arrow(342, 130, 438, y + 20)
    picture.box(640, 70, 100, 70, "store", "Redis")
    picture.arrow(562, 44, 638, 92, both=True)
    picture.arrow(562, 92, 638, 104, both=True)
    picture.arrow(562, 144, 638, 116, both=True)
    picture.text(
        20, 310, "A session lives on one video replica; any gateway finds it by the session's id.", colour=GREY
    )
    picture.save("concept-system.svg")


def blocks() -> None:
    """A fork shares what was before it."""
    picture = Picture(760, 240, "Two sessions whose tables name the same blocks up to the fork, and their own after it")
    for index in range(7):
        shared = index < 4
        of_whom = "shared" if shared else "ours" if index < 6 else "client"
        picture.box(40 + 100 * index, 100, 80, 40, of_whom, f"block {index}")
    picture.text(40, 36, "session A: 0 1 2 3 4 5")
    picture.text(40, 216, "session B, forked from A at chunk 4: 0 1 2 3 6")
    for index in range(6):
        picture.arrow(70 + 100 * index, 46, 70 + 100 * index, 98)
    for index in (0, 1, 2, 3, 6):
        picture.arrow(90 + 100 * index, 196, 90 + 100 * index, 142)
    picture.save("concept-blocks.svg")


def ticks() -> None:
    """Members of a tick stand at different evaluations of their chunks."""
    picture = Picture(760, 250, "Three sessions share ticks, each at its own step of its own chunk")
    rows = {"A": (0, 8), "B": (1, 6), "C": (3, 4)}
    for tick in range(8):
        picture.text(150 + 72 * tick, 30, f"tick {tick + 1}", "middle", GREY)
    for row, (name, (first, count)) in enumerate(rows.items()):
        y = 50 + 52 * row
        picture.text(20, y + 25, f"session {name}")
        for tick in range(first, first + count):
            done = tick - first
            if done % 2:
                picture.box(118 + 72 * tick, y, 64, 40, "shared", "2 of 2", "commit")
            else:
                picture.box(118 + 72 * tick, y, 64, 40, "ours", "1 of 2")
    picture.text(
        20,
        232,
        "A chunk takes its evaluations; after the last its block is committed. Who comes joins the next tick.",
        colour=GREY,
    )
    picture.save("concept-ticks.svg")


if __name__ == "__main__":
    system()
    blocks()
    ticks()
