"""docs/oip.md: its tables are what models take and give, its settings, platforms, extensions and paths are there."""

import re
from pathlib import Path
from typing import Any

import pytest
from worldtree.multitask.v1 import multi_task_pb2 as multitask_pb
from worldtree.navigator.v1 import navigator_pb2 as navigator_pb
from worldtree.reward.v1 import reward_scorer_pb2 as reward_pb
from worldtree.video.v1 import video_generator_pb2 as video_pb
from worldtree_gateway import oip_experts, oip_judges, oip_planners, oip_rest, oip_worlds
from worldtree_gateway.config import GatewaySettings

TEXT = (Path(__file__).parents[2] / "docs/oip.md").read_text()
SECTIONS = dict(zip(*[iter(re.split(r"^## (.+)$", TEXT, flags=re.MULTILINE)[1:])] * 2, strict=True))
WORLD = oip_worlds.describe(
    video_pb.Model(
        prompt_supported=True, action_space=video_pb.ActionSpace(discrete=video_pb.ActionSpace.Discrete(names=["left"]))
    )
)
ARM = oip_worlds.describe(
    video_pb.Model(action_space=video_pb.ActionSpace(continuous=video_pb.ActionSpace.Continuous(size=2)))
)
EXPERTS = oip_experts.describe(multitask_pb.ListTasksResponse(tasks=[multitask_pb.Task(name="hue", classes=["red"])]))
JUDGE = oip_judges.describe(reward_pb.ListRubricsResponse())
(PLANNER,) = oip_planners.describe_all(navigator_pb.ListPlannersResponse(planners=[navigator_pb.Planner(name="mpc")]))


def table(model: Any, head: str) -> dict[str, list[str]]:
    """By name, the datatypes of one table of the section about a model of this kind."""
    section = next(text for title, text in SECTIONS.items() if f"`{model.platform}`" in title)
    found: dict[str, list[str]] = {}
    rows = re.search(rf"^\| {head} \|.*\n\| ---.*\n((?:\|.*\n)+)", section, re.MULTILINE)
    for row in rows[1].splitlines() if rows else ():
        _, names, kinds, *_ = (cell.strip() for cell in row.split("|"))
        known = re.findall(r"\b(U?INT\d+|FP\d+|BYTES)\b", kinds)
        for place, name in enumerate(re.findall(r"`(\w+)`", names)):
            found[name] = known[place : place + 1] if "`, `" in names and len(known) > 1 else known
    return found


@pytest.mark.parametrize("model", [WORLD, EXPERTS, JUDGE, PLANNER], ids=lambda model: model.section)
def test_the_tables_are_what_a_model_takes_and_gives(model: Any) -> None:
    inputs = table(model, "input")
    assert set(inputs) == {each.name for each in model.inputs}
    for each in model.inputs:
        assert not inputs[each.name] or inputs[each.name][0] == each.datatype, each.name
        assert {kind for kind in inputs[each.name] if kind == "BYTES"} <= {each.datatype, *each.also}
    if model is not EXPERTS:  # whose outputs are its tasks
        outputs = table(model, "output")
        assert set(outputs) == {each.name for each in model.outputs}
        for each in model.outputs:
            assert outputs[each.name][:1] == [each.datatype], each.name


def test_actions_that_are_vectors_are_told() -> None:
    actions = next(each for each in ARM.inputs if each.name == "actions")
    assert table(ARM, "input")["actions"][-1] == actions.datatype == "FP32"


def test_the_settings_are_there() -> None:
    named = {*re.findall(r"gateway\.(\w+)", TEXT), *re.findall(r"`((?:oip|max|http)_\w+)`", TEXT), "canary"}
    assert {"oip_sequences", "oip_sequence_idle_s", "http_port"} <= named
    assert named <= set(GatewaySettings.model_fields)
    ours = re.sub(r"^```text\n.*?^```$", "", TEXT, flags=re.MULTILINE | re.DOTALL)  # the rest is another tool's
    flags = {flag.replace("-", "_") for flag in re.findall(r"--([a-z][a-z-]+)", ours)}
    assert flags <= set(GatewaySettings.model_fields)
    for name, told in re.findall(r"`gateway\.(oip_\w+)`\s+\(([\d,]+)", TEXT):
        assert GatewaySettings.model_fields[name].default == int(told.replace(",", "")), name


def test_the_paths_of_rest_are_those_that_are_answered() -> None:
    told = {(method, path) for method, path in re.findall(r"`(GET|POST) (/v2[^`]*)`", TEXT)}
    plain = {(method, path) for method, path in told if "NAME" not in path}
    ends = {path.rpartition("]")[2] for _, path in told if "NAME" in path} | set(
        re.findall(r"`(/\w+)`", SECTIONS["REST"])
    )
    served = {(method, path) for path, (method, _) in oip_rest.Rest._routes.items()}
    assert plain == {(method, path) for method, path in served if "*" not in path}
    assert ends == {path.rpartition("*")[2] for _, path in served if "*" in path}
