"""`worldtree merge predict`: what a merge sees in pictures, or in frames of a world."""

from pathlib import Path
from typing import Annotated

import typer

from worldtree.cli.actions_text import ACTIONS_HELP, parse_actions
from worldtree.cli.beginning import PromptOption, StartOption, beginning, tell_warnings
from worldtree.cli.connection import AddressOption, connect
from worldtree.cli.console import out, print_json
from worldtree.cli.generate import NfeOption, SeedOption
from worldtree.cli.image_files import read_images
from worldtree.cli.merge_create import JsonOption, SetOption, TaskModelOption
from worldtree.cli.merge_tables import answers_table
from worldtree.cli.recipe_text import method_of, parse_parameters, parse_preference
from worldtree.client import Client
from worldtree.errors import InvalidRequest
from worldtree.multitask_types import Answer, MergeLike, Recipe
from worldtree.types import Frames


def predict(
    context: typer.Context,
    images: Annotated[
        list[Path] | None,
        typer.Argument(
            help="Image files, folders of them, or uint8 [n, height, width, 3] in .npy.",
            exists=True,
            show_default="frames of --world",
        ),
    ] = None,
    world: Annotated[
        str | None,
        typer.Option(help="Predict on generated frames of this world, NAME or NAME/VERSION.", show_default=False),
    ] = None,
    actions: Annotated[str, typer.Option(help=f"Of --world. {ACTIONS_HELP}")] = "forward*4,left,forward*2",
    start: StartOption = None,
    prompt: PromptOption = None,
    seed: SeedOption = 0,
    nfe: NfeOption = 0,
    task: Annotated[
        list[str] | None, typer.Option("--task", "-t", help="A task; may be repeated.", show_default="all")
    ] = None,
    merge: Annotated[
        str | None, typer.Option("--merge", "-m", help="Answer with this merge.", show_default="all tasks equally")
    ] = None,
    preference: Annotated[
        str | None,
        typer.Option(
            "--preference",
            "-p",
            help="Answer with a merge for TASK=WEIGHT,TASK=WEIGHT; ratios count.",
            show_default=False,
        ),
    ] = None,
    method: Annotated[
        str | None, typer.Option(help="Answer with a merge made in passing by this method.", show_default=False)
    ] = None,
    settings: SetOption = None,
    model: TaskModelOption = None,
    address: AddressOption = None,
    as_json: JsonOption = False,
) -> None:
    """Answer tasks for images: a row an image, a column a task, with how sure the answer is.

    Examples: `worldtree merge predict --world minigrid --preference front_object=0.7,door_state=0.3`,
    `worldtree merge predict shot.png --method ties --set density=0.2`.
    """
    if bool(images) == bool(world):
        raise InvalidRequest("give image files, or --world for generated frames", field="images")
    if sum(each is not None for each in (merge, preference, method)) > 1:
        raise InvalidRequest("--merge, --preference and --method exclude one another", field="merge")
    if settings and method is None:
        raise InvalidRequest("--set is of a --method", field="set")
    with connect(context, address) as client:
        answering = _answering(client, merge, preference, method, settings or [], model)
        if images:
            shown, names = read_images(images)
        else:
            shown, names = _generated(client, world or "", actions, start, prompt, seed=seed, nfe=nfe)
        answer = client.multitask.predict(shown, tasks=task, merge=answering, model=model)
    if as_json:
        print_json(_report(answer, names))
        return
    out.print(answers_table(answer, names))
    timing = answer.timing
    source = "from the cache" if answer.cached else f"{1e3 * timing.run_s:.1f} ms in the network"
    made = f", merged in {1e3 * timing.merge_s:.1f} ms" if timing.merge_s and not answer.cached else ""
    out.print(f"{answer.model}/{answer.version}, merge {answer.merge_digest[:16]}: {source}{made}")


def _answering(
    client: Client,
    merge: str | None,
    preference: str | None,
    method: str | None,
    settings: list[str],
    model: str | None,
) -> MergeLike | None:
    if method is not None:
        known = method_of(client.multitask.tasks(model), method)
        return Recipe(method, **parse_parameters(settings, known))
    return merge if preference is None else parse_preference(preference)


def _generated(
    client: Client, model: str, actions: str, start: str | None, prompt: str | None, *, seed: int, nfe: int
) -> tuple[Frames, list[str]]:
    """The frames of a clip, and after which action each came."""
    wanted = parse_actions(actions)
    info = client.model(model)
    start, prompt = beginning(info, start, prompt)
    clip = client.generate(info, start=start, prompt=prompt, actions=wanted, seed=seed, nfe=nfe)
    tell_warnings(clip.warnings)
    per_chunk = info.frames_per_chunk
    names = [
        f"{index // per_chunk + 1} {wanted[index // per_chunk]}"
        + (f" ({index % per_chunk + 1})" if per_chunk > 1 else "")
        for index in range(len(clip.frames))
    ]
    return clip.frames, names


def _report(answer: Answer, names: list[str]) -> dict[str, object]:
    return {
        "model": f"{answer.model}/{answer.version}",
        "digest": answer.digest,
        "merge_digest": answer.merge_digest,
        "cached": answer.cached,
        "timing": answer.timing,
        "images": [
            {
                "image": name,
                "answers": {
                    task: {
                        "label": each.labels[index],
                        "class_id": int(each.class_ids[index]),
                        "probabilities": [round(value, 6) for value in each.probabilities[index].tolist()],
                    }
                    for task, each in answer.items()
                },
            }
            for index, name in enumerate(names)
        ],
    }
