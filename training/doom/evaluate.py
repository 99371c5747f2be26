"""Plays the package on held-out walks and measures it. `python -m training.doom.evaluate --help`."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import numpy.typing as npt
import torch
import typer
from PIL import Image, ImageFilter

from training.doom import judge as judging
from training.doom import world
from training.doom.card import table, write_card
from training.doom.data import Walk, record
from training.doom.export import DEFAULT_PACKAGE
from training.doom.package import Histories, Package
from training.doom.sheet import save_sheet

UInt8 = npt.NDArray[np.uint8]
DEPTHS = (1, 2, 4, 8, 16)
GIVEN = 4  # real chunks before them
WHOLE_TURN = round(360 / (world.TURN_DEGREES * world.TICS * world.FRAMES))
BLUR_PX = 1.5
app = typer.Typer(add_completion=False)


def psnr(one: UInt8, other: UInt8) -> npt.NDArray[np.float64]:
    """Of frames [..., 64, 80, 3], frame by frame, in dB; equal frames count as 60."""
    error = np.square(one.astype(np.float64) - other).mean((-3, -2, -1))
    answer: npt.NDArray[np.float64] = 10 * np.log10(255.0**2 / np.maximum(error, 255.0**2 / 1e6))
    return answer


def blurred(frames: UInt8) -> UInt8:
    """Frames [N, 64, 80, 3] as a model would show them that knew everything but the details."""
    return np.stack([np.asarray(Image.fromarray(f).filter(ImageFilter.GaussianBlur(BLUR_PX))) for f in frames])


def play(
    package: Package, given: UInt8, led: npt.NDArray[np.int64], actions: npt.NDArray[np.int64], *, nfe: int, seed: int
) -> UInt8:
    """Chunks [N, T, F, 64, 80, 3] that the package makes after the real chunks `given` [N, G, F, 64, 80, 3].

    led [N, G]: the actions that led to these; actions [N, T]: those to follow.
    """
    histories = Histories(package, len(given), seed=seed)
    for k in range(given.shape[1]):
        histories.observe(given[:, k], led[:, k])
    return np.stack([histories.step(actions[:, k], nfe=nfe) for k in range(actions.shape[1])], axis=1)


def by_depth(judge: judging.Judge, truth: UInt8, made: UInt8, last: UInt8) -> list[dict[str, Any]]:
    """One row a depth and picture: `model`, `copy` (the last real frame held) and `blur` (the truth, blurred)."""
    rows: list[dict[str, Any]] = []
    held = np.broadcast_to(last[:, None], truth[:, 0].shape)
    for depth in DEPTHS:
        real = truth[:, depth - 1]
        flat = real.reshape(-1, *real.shape[2:])
        blur = blurred(flat).reshape(real.shape)
        for name, shown in (("model", made[:, depth - 1]), ("copy", held), ("blur", blur)):
            far = judging.distances(judge, flat, np.ascontiguousarray(shown).reshape(flat.shape))
            rows.append(
                {
                    "depth": depth,
                    "picture": name,
                    "psnr": float(psnr(real, shown).mean()),
                    "distance": float(far.mean()),
                }
            )
    return rows


def statistics(judge: judging.Judge, truth: UInt8, made: UInt8, last: UInt8) -> dict[str, float]:
    """Frechet distances to the real chunks of all depths; `real` is between two halves of the real walks."""
    chunks = (-1, *truth.shape[2:])
    real = judging.descriptions(judge, truth.reshape(chunks))
    half = len(real) // 2
    held = np.broadcast_to(last[:, None, None], truth.shape)
    flat = truth.reshape(-1, *truth.shape[3:])
    return {
        "model": judging.frechet(real, judging.descriptions(judge, made.reshape(chunks))),
        "copy": judging.frechet(real, judging.descriptions(judge, np.ascontiguousarray(held).reshape(chunks))),
        "blur": judging.frechet(real, judging.descriptions(judge, blurred(flat).reshape(-1, *truth.shape[2:]))),
        "real": judging.frechet(real[:half], real[half:]),
    }


def right_round(
    judge: judging.Judge, package: Package, given: UInt8, led: npt.NDArray[np.int64], *, nfe: int
) -> list[dict[str, Any]]:
    """A whole turn on the spot: its end against the last real frame, beside another walk's."""
    stand = np.full((len(given), 1), world.WAIT, np.int64)  # what is left of the last step
    actions = np.concatenate([stand, np.full((len(given), WHOLE_TURN), world.LEFT, np.int64)], axis=1)
    made = play(package, given, led, actions, nfe=nfe, seed=1)
    before, ended = made[:, 0, -1], made[:, -1, -1]
    rows: list[dict[str, Any]] = []
    last = given[:, -1, -1]
    pairs = {
        "the turn's end and the served view before it": (before, ended),
        "the turn's end and the last real view": (last, ended),
        "another walk's view and the last real view": (last, np.roll(last, 1, axis=0)),
    }
    for name, (one, other) in pairs.items():
        far = judging.distances(judge, one, other)
        rows.append({"picture": name, "psnr": float(psnr(one, other).mean()), "distance": float(far.mean())})
    return rows


def speed(package: Package, start: UInt8, *, nfe: int, chunks: int = 30) -> dict[str, float]:
    """One session, one thread: median milliseconds a chunk, decoding and committing included, and frames a second."""
    histories = Histories(package, 1, seed=0)
    histories.observe(start[None], np.array([world.NONE]))
    times = []
    for k in range(chunks):
        began = time.perf_counter()
        histories.step(np.array([k % world.NONE]), nfe=nfe)
        times.append(time.perf_counter() - began)
    chunk_s = float(np.median(times))
    return {"nfe": nfe, "chunk_ms": 1000 * chunk_s, "fps": world.FRAMES / chunk_s}


def record_walks(count: int, *, chunks: int, split: str = "test") -> list[Walk]:
    """Held-out walks: by their seeds, disjoint from those trained on."""
    game = world.World()
    walks = [record(game, split, k, chunks=chunks) for k in range(count)]
    game.close()
    return walks


@app.command()
def main(
    folder: Annotated[Path, typer.Option(help="the package")] = DEFAULT_PACKAGE,
    judge_checkpoint: Annotated[Path, typer.Option(help="what judge.py saved")] = judging.DEFAULT_CHECKPOINT,
    walks: Annotated[int, typer.Option(help="held-out walks")] = 40,
    out: Annotated[Path, typer.Option(help="where the document goes")] = Path("out/training/doom/evaluation.json"),
    card: Annotated[bool, typer.Option(help="rewrite MODEL_CARD.md and contact.png")] = True,
) -> None:
    """Prints the tables; writes them as JSON, and the package's card and contact sheet."""
    torch.set_num_threads(1)
    package, judge = Package(folder), judging.load_judge(judge_checkpoint)
    recorded = record_walks(walks, chunks=GIVEN + DEPTHS[-1])
    frames = np.stack([walk.frames for walk in recorded])
    actions = np.stack([walk.actions for walk in recorded]).astype(np.int64)
    given, truth, led = frames[:, :GIVEN], frames[:, GIVEN:], actions[:, :GIVEN]
    last = given[:, -1, -1]
    default = package.manifest["sampler"]["default_nfe"]
    document: dict[str, Any] = {
        "walks": walks,
        "given": GIVEN,
        "default_nfe": default,
        "window": package.window,
        "rows": [],
    }
    shown = truth
    for nfe in package.manifest["sampler"]["schedules"]:
        made = play(package, given, led, actions[:, GIVEN:], nfe=nfe, seed=0)
        shown = made if nfe == default else shown
        for row in by_depth(judge, truth, made, last):
            if row["picture"] == "model" or nfe == default:
                document["rows"].append({"nfe": nfe, **row})
        document.setdefault("frechet", {})[str(nfe)] = statistics(judge, truth, made, last)
    document["right_round"] = right_round(judge, package, given, led, nfe=default)
    document["speed"] = [speed(package, given[0, 0], nfe=n) for n in package.manifest["sampler"]["schedules"]]
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(json.dumps(document, indent=1))
    typer.echo(table(document))
    if card:
        write_card(folder, document)
        save_sheet(folder / "contact.png", last, truth, shown)


if __name__ == "__main__":
    app()
