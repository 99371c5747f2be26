"""Every bad request is refused with a status that names field, value and limit; and scoring goes on."""

import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import onnx
import pytest
from worldtree.common.v1 import common_pb2 as common
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree_reward.config import RewardSettings
from worldtree_reward.serving import serve_reward
from worldtree_runtime.model_package import PackageError
from worldtree_runtime.testing import TinyWorld
from worldtree_runtime.testing_judges import TinyJudge

INVALID, NOT_FOUND = grpc.StatusCode.INVALID_ARGUMENT, grpc.StatusCode.NOT_FOUND


@pytest.fixture(autouse=True)
async def scoring_goes_on(service: Any, tools: Any) -> AsyncIterator[None]:
    """Whatever was refused, a good clip is scored as before, and nothing waits."""
    before = await service.score(tools.clip())
    yield
    after = await service.score(tools.clip())
    assert after.judgement == before.judgement
    assert sum((await service.metric("worldtree_score_waiting_frames")).values()) == 0


@pytest.mark.parametrize(
    ("change", "field", "said"),
    [
        (lambda c, t: c.ClearField("frames"), "clip.frames", "exactly one of tensor and png"),
        (lambda c, t: c.frames.CopyFrom(t.frames(t.pixels(0))), "clip.frames", "one more than actions, 3, got 0"),
        (lambda c, t: c.actions.append(0), "clip.frames", "one more than actions, 4, got 3"),
        (lambda c, t: c.ClearField("actions"), "clip.frames", "one more than actions, 1, got 3"),
        (
            lambda c, t: c.frames.CopyFrom(t.frames(t.pixels(size_px=9))),
            "clip.frames.tensor.shape",
            "[frames, 8, 8, 3], got [3, 9, 9, 3]",
        ),
        (
            lambda c, t: c.frames.tensor.__setattr__("dtype", common.Tensor.D_TYPE_FLOAT32),
            "clip.frames.tensor.dtype",
            "D_TYPE_UINT8, got D_TYPE_FLOAT32",
        ),
        (lambda c, t: c.frames.tensor.__setattr__("data", b"x"), "clip.frames.tensor.data", "576 bytes"),
        (
            lambda c, t: c.frames.CopyFrom(common.Frames(png=[t.bomb()] * 3)),
            "clip.frames.png[0]",
            "at most 1048576 pixels, got 100000 x 100000",
        ),
        (lambda c, t: c.actions.__setitem__(1, 3), "clip.actions[1]", "an action 0 to 2, got 3"),
        (lambda c, t: c.actions.__setitem__(0, -1), "clip.actions[0]", "an action 0 to 2, got -1"),
        (lambda c, t: c.action_names.append("go"), "clip.actions", "must not both be set"),
    ],
)
async def test_a_clip_that_is_none(service: Any, tools: Any, change: Any, field: str, said: str) -> None:
    clip = tools.clip()
    change(clip, tools)
    refusal = await tools.refused(service.score(clip))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert said in refusal.message


async def test_a_clip_of_one_frame_has_no_step(service: Any, tools: Any) -> None:
    refusal = await tools.refused(service.score(tools.clip(tools.pixels(1))))
    assert (refusal.code, refusal.field) == (INVALID, "clip.frames")


async def test_an_action_of_another_world(service: Any, tools: Any) -> None:
    clip = tools.clip(actions=[])
    clip.action_names.extend(["go", "fly"])
    refusal = await tools.refused(service.score(clip))
    assert (refusal.code, refusal.field) == (INVALID, "clip.action_names[1]")
    assert "one of stay, go, jump, got 'fly'" in refusal.message


async def test_a_clip_longer_than_is_taken(serve: Any, tools: Any) -> None:
    service = await serve(max_steps=4)
    assert (await service.score(tools.grey(9, 5))).judgement.category == "brightness"
    refusal = await tools.refused(service.score(tools.grey(9, 6)))
    assert (refusal.code, refusal.field) == (INVALID, "clip.actions")
    assert "4 steps at most, got 5" in refusal.message


async def test_a_goal_of_a_megabyte(service: Any, tools: Any) -> None:
    refusal = await tools.refused(service.score(tools.clip(), pb.Question(goal="a" * (1 << 20))))
    assert (refusal.code, refusal.field) == (INVALID, "question.goal")
    assert "1024 characters at most, got 1048576" in refusal.message


@pytest.mark.parametrize(
    ("weights", "field", "said"),
    [
        ({"brightness": math.nan}, "question.weights[brightness]", "must be finite, got nan"),
        ({"motion": math.inf}, "question.weights[motion]", "must be finite, got inf"),
        ({"motion": 0.0, "brightness": 0.0}, "question.weights", "must not all be 0"),
    ],
)
async def test_weights_that_weigh_nothing(service: Any, tools: Any, weights: Any, field: str, said: str) -> None:
    refusal = await tools.refused(service.score(tools.clip(), pb.Question(goal="a bright clip", weights=weights)))
    assert (refusal.code, refusal.field) == (INVALID, field)
    assert said in refusal.message


@pytest.mark.parametrize(
    ("question", "said"),
    [
        (pb.Question(goal="a", weights={"taste": 1.0}), 'dimension "taste" not found'),
        (pb.Question(goal="a", category="cooking"), 'category "cooking" not found'),
    ],
)
async def test_a_rubric_that_there_is_not(service: Any, tools: Any, question: pb.Question, said: str) -> None:
    refusal = await tools.refused(service.score(tools.clip(), question))
    assert refusal.code is NOT_FOUND
    assert said in refusal.message


@pytest.mark.parametrize(
    ("ref", "said"),
    [
        (common.ModelRef(name="nobody"), "nobody"),
        (common.ModelRef(name="tiny-judge", version="7"), "tiny-judge/7"),
        (common.ModelRef(name="tiny-judge", digest="0" * 64), "0000"),
    ],
)
async def test_a_judge_that_there_is_not(service: Any, tools: Any, ref: Any, said: str) -> None:
    for call in (
        service.stub.ListRubrics(pb.ListRubricsRequest(model=ref)),
        service.stub.Score(pb.ScoreRequest(model=ref, clip=tools.clip())),
        service.stub.Rank(pb.RankRequest(model=ref, candidates=[tools.clip()])),
    ):
        refusal = await tools.refused(call)
        assert refusal.code is NOT_FOUND
        assert said in refusal.message


async def test_a_thousand_candidates_and_none(service: Any, tools: Any) -> None:
    for count in (0, 1000):
        refusal = await tools.refused(service.rank([tools.grey(3)] * count))
        assert (refusal.code, refusal.field) == (INVALID, "candidates")
        assert f"1 to 256 clips, got {count}" in refusal.message


async def test_one_bad_candidate_is_named_and_none_is_scored(service: Any, tools: Any) -> None:
    counted = await service.metric("worldtree_score_clips_total")
    refusal = await tools.refused(service.rank([tools.grey(3), tools.clip(actions=[0, 9])]))
    assert (refusal.code, refusal.field) == (INVALID, "candidates[1].actions[1]")
    compared = pb.CompareRequest(first=tools.grey(3), second=tools.clip(tools.pixels(size_px=4)))
    assert (await tools.refused(service.stub.Compare(compared))).field == "second.frames.tensor.shape"
    assert await service.metric("worldtree_score_clips_total") == counted


async def test_more_frames_than_may_wait(serve: Any, tools: Any) -> None:
    service = await serve(max_waiting_frames=8)
    # At rest a request larger than the limit is taken: whoever is alone need not come again for ever.
    assert len((await service.rank([tools.grey(each) for each in range(8)])).ranked) == 8
    engine = next(iter(service.catalog)).engine
    with engine._wake:  # nothing is taken from the queue meanwhile
        request = engine._scheduler
        request.waiting_frames += 7
    try:
        refusal = await tools.refused(service.score(tools.grey(3)))
    finally:
        with engine._wake:
            request.waiting_frames -= 7
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "SCORES_FULL")
    assert refusal.details["RetryInfo"].retry_delay.ToTimedelta().total_seconds() > 0


async def test_an_expert_that_answers_with_no_number_ends_no_other_clip(serve: Any, tools: Any, models: Path) -> None:
    TinyJudge(poisoned="motion").write(models)
    service = await serve()
    flicker = np.zeros((3, 8, 8, 3), np.uint8)
    flicker[::2] = 255
    refusal = await tools.refused(service.score(tools.clip(flicker)))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.FAILED_PRECONDITION, "JUDGE_BROKEN")
    assert "motion" in refusal.message
    assert (await service.score(tools.grey(3))).judgement.category == "brightness"


def _rewritten(file: Path, old: str, new: str) -> None:
    text = file.read_text()
    assert old in text
    file.write_text(text.replace(old, new))


def _card(file: Path, text: str) -> None:
    graph = onnx.load(str(file))
    onnx.helper.set_model_props(graph, {"worldtree": text})
    onnx.save(graph, str(file))


@pytest.mark.parametrize(
    ("damage", "said"),
    [
        (lambda f: (f / "trunk.onnx").write_bytes(b"?"), "trunk.onnx: graph"),
        (lambda f: (f / "experts/motion.onnx").unlink(), "experts/motion.onnx, which is missing"),
        (lambda f: (f / "joint.onnx").write_bytes((f / "router.onnx").read_bytes()), "joint.onnx"),
        (
            lambda f: (f / "experts/taste.onnx").write_bytes((f / "joint.onnx").read_bytes()),
            "taste.onnx: metadata worldtree: is missing",
        ),
        (lambda f: _card(f / "experts/motion.onnx", "{"), "motion.onnx: metadata worldtree: must be JSON"),
        (
            lambda f: _card(f / "experts/motion.onnx", '{"description": "", "unit": 0, "knots": [[0, 0], [1, 1]]}'),
            "motion.onnx: metadata worldtree.unit: Input should be greater than 0",
        ),
        (
            lambda f: _card(f / "experts/motion.onnx", '{"description": "", "unit": 1, "knots": [[0, 1], [1, 0]]}'),
            "motion.onnx: metadata worldtree.knots: Value error, knots must rise",
        ),
        (lambda f: _rewritten(f / "model.yaml", "brightness: 1.0", "taste: 1.0"), "must name dimensions, got 'taste'"),
        (lambda f: _rewritten(f / "model.yaml", "memory: 1", "memory: 2"), "memory"),
    ],
)
async def test_a_broken_judge_is_not_served_and_says_why(models: Path, damage: Any, said: str) -> None:
    folder = TinyJudge(name="broken").write(models.parent / "others")
    damage(folder)
    with pytest.raises(PackageError) as refused:
        async with serve_reward(RewardSettings(port=0, metrics_port=0, models=str(models.parent / "others"))):
            pass
    assert said in str(refused.value)


async def test_a_repository_without_judges_is_served_and_says_so(serve: Any, tools: Any, tmp_path: Path) -> None:
    TinyWorld().write(tmp_path / "worlds")
    service = await serve(models=str(tmp_path / "worlds"))
    refusal = await tools.refused(service.stub.ListRubrics(pb.ListRubricsRequest()))
    assert refusal.code is NOT_FOUND
    assert str(tmp_path / "worlds") in refusal.message


async def _messages(*messages: pb.ScoreStreamRequest) -> AsyncIterator[pb.ScoreStreamRequest]:
    for message in messages:
        yield message


async def test_a_stream_that_does_not_say_what_is_asked_or_says_it_twice(service: Any, tools: Any) -> None:
    question, begin = pb.Question(goal="a bright clip"), tools.clip()
    more = tools.clip(tools.pixels(1), actions=[1])
    for messages, field in (
        ([pb.ScoreStreamRequest(clip=begin)], "question"),
        ([pb.ScoreStreamRequest(question=question, clip=begin)] * 2, "question"),
        ([pb.ScoreStreamRequest(question=question)], "clip.frames"),
        (
            [pb.ScoreStreamRequest(question=question, clip=begin), pb.ScoreStreamRequest(clip=tools.clip())],
            "clip.frames",
        ),
        (
            [pb.ScoreStreamRequest(question=question, clip=begin)] + [pb.ScoreStreamRequest(clip=more)] * 255,
            "clip.actions",
        ),
    ):
        refusal = await tools.refused(service.stub.ScoreStream(_messages(*messages)))
        assert (refusal.code, refusal.field) == (INVALID, field)
    assert sum((await service.metric("worldtree_score_streams")).values()) == 0


async def test_more_streams_than_are_kept(serve: Any, tools: Any) -> None:
    service = await serve(max_streams=1)
    call = service.stub.ScoreStream()
    await call.write(pb.ScoreStreamRequest(question=pb.Question(goal="a bright clip"), clip=tools.clip()))
    assert (await call.read()).step_count == 2
    refusal = await tools.refused(service.stub.ScoreStream(_messages()))
    assert (refusal.code, refusal.reason) == (grpc.StatusCode.RESOURCE_EXHAUSTED, "STREAMS_FULL")
    await call.done_writing()
    assert await call.read() is grpc.aio.EOF
