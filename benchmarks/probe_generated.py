"""What experts of perception see in generated frames: a semantic check of the video service, held to the simulator.

Held-out walks of MiniGrid (seeds that neither the world model nor the experts know) give a session its first frames and
the actions; the video service generates what follows, the simulator shows what truly did. The multi-task service asks
each task's expert of both. Truth is the simulator's state, not a picture's.

Each expert is asked in the environments that it knows.

- `true`: the expert on the simulator's frame. What it misses there it cannot be asked of a generated one.
- `generated`: the same expert on the generated frame of the same moment.
- `merge`: one network for all tasks (equal preference) on the generated frame.

Counted are frames that follow from what was seen (each cell in view is determined): what comes into view for the first
time the model may invent. Each answer of a task counts as much as every other, however rare; answers that
are true fewer than 8 times at a depth are left out.
"""

import sys
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
import typer
import worldtree
from numpy.typing import NDArray
from report import Bar, Row, publish
from rich.progress import Progress
from worldtree.cli.stack import Stack, StackOptions

ROOT = Path(__file__).parents[1]
DEPTHS = (1, 4, 8, 16)
LEAST = 8
MODEL = "minigrid"


def walks(count: int) -> tuple[list[Any], int]:
    """Held-out episodes, and how many of their frames are given."""
    sys.path.insert(0, str(ROOT))  # the recipes are no installed package
    from training.minigrid.data import record_many
    from training.minigrid.rolling import START_COUNT

    length = START_COUNT + max(DEPTHS)
    return record_many("test", count, length=length, check_rate=0.0, lively=True), START_COUNT


def generated(client: worldtree.Client, episodes: Sequence[Any], given: int) -> NDArray[np.uint8]:
    """The frames that the video service makes, [episodes, depth, height, width, 3]."""
    from training.minigrid import tiles

    made = []
    with Progress() as progress:
        for number, episode in enumerate(progress.track(episodes, description="generating walks")):
            past = tiles.draw_frame(episode.ids[:given])
            between = [int(each) for each in episode.actions[1:given]]
            with client.world(MODEL, frames=past, actions=between, seed=number) as world:
                made.append(world.step([int(each) for each in episode.actions[given : given + max(DEPTHS)]]))
    return np.stack(made)


def answers(
    client: worldtree.Client, frames: NDArray[np.uint8], tasks: Sequence[str], merge: Any
) -> dict[str, NDArray[np.int64]]:
    """Class ids of the frames by task; `merge` None: each task by its own expert."""
    found: dict[str, list[Any]] = {task: [] for task in tasks}
    for part in np.array_split(frames, max(1, len(frames) // 128)):
        for task in tasks:
            recipe = merge or worldtree.Recipe("expert", expert=task)
            found[task].append(client.multitask.predict(part, tasks=[task], merge=recipe)[task].class_ids)
    return {task: np.concatenate(each) for task, each in found.items()}


def balanced(said: NDArray[np.int64], truth: NDArray[np.int64]) -> float:
    """Mean over answers of the share said right where it is true; NaN where no answer is true often enough."""
    shares = [
        float((said[truth == each] == each).mean()) for each in np.unique(truth) if (truth == each).sum() >= LEAST
    ]
    return float(np.mean(shares)) if shares else float("nan")


def measure(client: worldtree.Client, count: int) -> tuple[list[Row], dict[int, dict[str, float]]]:
    """A row a task and depth, and the means over tasks by depth."""
    episodes, given = walks(count)
    from training.minigrid import tiles
    from training.minigrid.rolling import truth_of
    from training.perception.tasks import TASKS

    made = generated(client, episodes, given)
    truth = truth_of(episodes, depth=max(DEPTHS), window=client.model(MODEL).window_chunks)
    follows = (truth.plain | (truth.ids == tiles.DARK)).all(axis=2)
    tasks = [task.name for task in TASKS]
    rows: list[Row] = []
    means: dict[int, dict[str, float]] = {}
    for depth in DEPTHS:
        # A few moments around a depth are one: the walks are few.
        moments = sorted({max(1, depth - 1), depth, min(max(DEPTHS), depth + 1)}) if depth > 1 else [1, 2]
        where = [
            (episode, moment - 1) for moment in moments for episode in range(count) if follows[episode, moment - 1]
        ]
        places = tuple(np.array(where).T)
        ids = truth.ids[places]
        seen = {
            "true": answers(client, tiles.draw_frame(ids), tasks, None),
            "generated": answers(client, made[places], tasks, None),
            "merge": answers(client, made[places], tasks, dict.fromkeys(tasks, 1.0)),
        }
        found = []
        for task in TASKS:
            at_home = np.array([episodes[walk].env_id in task.environments for walk in places[0]])
            right = task.answer(ids[at_home])
            found.append({kind: balanced(said[task.name][at_home], right) for kind, said in seen.items()})
            rows.append({"depth": depth, "task": task.name, "frames": int(at_home.sum()), **found[-1]})
        means[depth] = {kind: float(np.nanmean([each[kind] for each in found])) for kind in seen}
        rows.append({"depth": depth, "task": "mean", "frames": len(ids), **means[depth]})
    return rows, means


def section(rows: Sequence[Row], count: int) -> str:
    """The section of the world's card."""
    from training.markdown import table

    names = list(dict.fromkeys(str(row["task"]) for row in rows))
    cells = {(row["task"], row["depth"]): row for row in rows}
    body = [
        [name, *(f"{cells[name, depth]['true']:.2f} / {cells[name, depth]['generated']:.2f}" for depth in DEPTHS)]
        for name in names
    ]
    text = table(["task", *(f"depth {depth}" for depth in DEPTHS)], body)
    return (
        "## What experts see\n\n"
        "Experts of `perception`, each on the simulator's frame / on the generated frame of the same moment, against\n"
        f"the simulator's state: {count} held-out walks, frames that follow from what was seen, every answer of a\n"
        "task counting alike (`python benchmarks/probe_generated.py`).\n\n"
        f"{text.replace('nan / nan', '-')}\n"
    )


def main(
    count: Annotated[int, typer.Option(help="Walks.")] = 480,
    quick: Annotated[bool, typer.Option("--quick", help="A look, in under a minute.")] = False,
    json_file: Annotated[Path | None, typer.Option("--json", help="Where the figures go.")] = None,
    card: Annotated[bool, typer.Option("--card", help="Put the figures into the world's MODEL_CARD.md.")] = False,
) -> None:
    """Asks experts what they see in generated frames."""
    count = min(count, 24) if quick else count
    begun_s = time.perf_counter()
    options = StackOptions(port=0, models=str(ROOT / "models"), log_level="warning")
    with Stack(options, on_log=lambda _: None) as stack, worldtree.Client(stack.grpc_address) as client:
        rows, means = measure(client, count)
    bars = [
        Bar(f"generated_per_true_depth_{depth}", means[depth]["generated"] / means[depth]["true"], bar)
        for depth, bar in ((1, 0.95), (8, 0.85))
    ]
    settings = {"walks": count, "quick": quick, "seconds": round(time.perf_counter() - begun_s, 1)}
    publish("what experts see in generated frames", rows, bars, settings=settings, keys={}, json_file=json_file)
    if card and not quick:
        from training.markdown import put_section

        file = ROOT / "models" / MODEL / "1/MODEL_CARD.md"
        file.write_text(put_section(file.read_text(), section(rows, count), before="## Limits"))


if __name__ == "__main__":
    typer.run(main)
