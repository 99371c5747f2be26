"""MODEL_CARD.md, with every figure taken from evaluate's document."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from training import markdown

TRAINED_STEPS = "4,359"  # of the shipped weights

_TEXT = """# doom 1

Nine rooms and their corridors seen through a marine's eyes, 64x80 pixels, a pistol in hand. Eight actions (wait,
forward, back, left, right, forward-left, forward-right, shoot), each held for a chunk of four frames: a third of a
second at 11.67 frames a second. It has learnt the map `my_way_home` of VizDoom by walking through it.

![Real walks above, served ones below](contact.png)

The held-out walks whose real frames differ most. Of each pair the upper row is VizDoom, the lower one what the
package makes of the picture left of the white line and the same actions; last frames of the chunks 1, 2, 3, 4, 6, 8,
12 and 16.

## Figures

Measured on the package itself (onnxruntime, paged pool, sliding window of {window} blocks, each chunk decoded,
rounded and encoded again as the service does) by `python -m training.doom.evaluate`: {walks} held-out walks, each
given {given} real chunks, then the actions alone. Default: {default_nfe} evaluations a chunk.

{depths}

- *distance*: like LPIPS, on the features of a small net that was trained here to tell places by their pictures
  (`training.doom.judge`); lower is more alike.
- *copy*: the last real frame held still. *blur*: the true frames blurred (Gaussian, 1.5 px): all right but the
  details.

Frechet distance of chunks to the real ones of the same walks, depths 1 to 16, on the same net's features (appearance
and its change within the chunk, as FVD has it). *real* is half of the real walks against the other half.

{frechet}

Right round, twelve times `left` on the spot: last frames.

{right_round}

One session on one thread, decoding, encoding and committing included; the world itself runs at 11.67 frames a second:

{speed}

## Model

- *Autoencoder*: 8x8 patches to 24 whitened principal components, so encoding is linear; the decoder adds what a small
  convolutional net makes of the latents around, in the components' orthogonal complement alone. Encoding what was
  decoded gives the latents back by construction, but for rounding and clipping.
- *Place*: each block holds where the walker is believed to be, and how sure that is. A small net says how likely each
  cell of the map and each heading looks; an odometer, which has learnt the walls, moves the belief with each action;
  a Kalman filter weighs both. In training they were told the simulator's poses; in service nothing but frames and
  actions.
- *Map*: feature grids and an MLP know what each column of a frame sees along its ray (light field networks, Sitzmann
  et al. 2021; grids, Mueller et al. 2022). Nearly all that is seen comes from here, so turning round or coming back
  needs no context.
- *Transformer*: 80 tokens a chunk, flow matching with x-prediction, four layers, of which two attend to the cached
  chunks. It decides on details between evaluations. At pure noise it does as well without the cached chunks' keys and
  values as with them; what it needs of the past is the belief.

## Data and recipe

1,200 walks of 32 chunks (153,600 frames) of a sticky, curious explorer with whole turns, bumps and shots; held-out
walks are from other seeds. The map is trained alone, which costs a ninth, then all of it on clean, noisy and
self-made contexts. The shipped weights: seed 0, {steps} steps, on a part of one shared CPU core without a GPU: 36
minutes of the map, 35 of all, 14 of the map, 8 of all. The code's defaults are the map first, then all; such a run
has not been made. `make train-doom` runs data, training, export and this evaluation.

## Limits

- One map, known by heart: a start from elsewhere is located somewhere in it.
- Textures are softer than the real thing: the map was learnt in an hour.
- Along walls and round corners the odometer slips: some tens of map units in twenty chunks, over a hundred in the
  worst tenth of the walks. What is shown stays a coherent place, but it is then not the simulator's.
- `shoot` is accepted, but hardly shows: the muzzle flash is in 3 chunks of a hundred, and was not learnt.
- No monsters, doors or things to take; the armour that ends VizDoom's episode can be walked through.

## Licence

Weights Apache-2.0. Trained on frames of ViZDoom (MIT) with Freedoom's pictures (BSD-3-Clause), of which the starts
and the contact sheet are examples.
"""


def _depths(document: dict[str, Any]) -> str:
    rows = document["rows"]
    depths = sorted({row["depth"] for row in rows})
    kinds = list(dict.fromkeys((row["picture"], row["nfe"]) for row in rows))
    cells = {(row["picture"], row["nfe"], row["depth"]): row for row in rows}
    header = ["", *(f"depth {depth}: PSNR, distance" for depth in depths)]
    body = []
    for name, nfe in sorted(kinds, key=lambda kind: (kind[0] != "model", kind)):
        label = f"model, {nfe} evaluations" if name == "model" else name
        found = [cells[name, nfe, depth] for depth in depths]
        body.append([label, *(f"{row['psnr']:.1f} dB, {row['distance']:.3f}" for row in found)])
    return markdown.table(header, body)


def _frechet(document: dict[str, Any]) -> str:
    measured = document["frechet"]
    rows = [[f"model, {nfe} evaluations", f"{figures['model']:.3f}"] for nfe, figures in measured.items()]
    default = measured[str(document["default_nfe"])]
    rows += [[name, f"{default[name]:.3f}"] for name in ("copy", "blur", "real")]
    return markdown.table(["", "Frechet distance"], rows)


def _right_round(document: dict[str, Any]) -> str:
    rows = [[row["picture"], f"{row['psnr']:.1f} dB", f"{row['distance']:.3f}"] for row in document["right_round"]]
    return markdown.table(["", "PSNR", "distance"], rows)


def _speed(document: dict[str, Any]) -> str:
    rows = [[str(row["nfe"]), f"{row['chunk_ms']:.0f}", f"{row['fps']:.0f}"] for row in document["speed"]]
    return markdown.table(["evaluations", "ms a chunk", "frames a second"], rows)


def table(document: dict[str, Any]) -> str:
    """All figures, for the terminal."""
    return "\n\n".join(part(document) for part in (_depths, _frechet, _right_round, _speed))


def write_card(folder: Path, document: dict[str, Any]) -> None:
    """Writes MODEL_CARD.md from what evaluate measured."""
    text = _TEXT.format(
        window=document["window"],
        walks=document["walks"],
        given=document["given"],
        default_nfe=document["default_nfe"],
        steps=TRAINED_STEPS,
        depths=_depths(document),
        frechet=_frechet(document),
        right_round=_right_round(document),
        speed=_speed(document),
    )
    (folder / "MODEL_CARD.md").write_text(text)
