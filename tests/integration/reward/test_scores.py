"""What is scored, compared, ranked and streamed; alone and among others the same."""

import asyncio
import math
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import grpc
import numpy as np
import pytest
from worldtree.reward.v1 import reward_scorer_pb2 as pb
from worldtree_runtime.testing_judges import TinyJudge

BRIGHT, MOVING = pb.Question(goal="a bright clip"), pb.Question(goal="A moving, MOVING clip!")


def score_of(judgement: pb.Judgement, name: str) -> float:
    return next(each.score for each in judgement.dimensions if each.name == name)


async def test_rubrics_say_what_is_looked_at(service: Any) -> None:
    rubrics = await service.stub.ListRubrics(pb.ListRubricsRequest())
    assert [each.name for each in rubrics.categories] == ["brightness", "motion"]
    assert [each.name for each in rubrics.dimensions] == ["brightness", "motion"]
    assert dict(rubrics.categories[0].weights) == {"brightness": 1.0}
    assert (rubrics.height_px, list(rubrics.actions), rubrics.max_steps) == (8, ["stay", "go", "jump"], 256)
    assert (rubrics.model.name, len(rubrics.model.digest)) == ("tiny-judge", 64)


async def test_the_goal_decides_who_judges(service: Any, tools: Any) -> None:
    still = (await service.score(tools.grey(200), BRIGHT)).judgement
    assert (still.category, still.unseen_category) == ("brightness", False)
    assert still.category_probability > 0.9
    assert [each.counts for each in still.dimensions] == [True, False]
    assert score_of(still, "brightness") == pytest.approx(200 / 255, abs=1e-4)
    moving = (await service.score(tools.clip(), MOVING)).judgement
    assert moving.category == "motion"
    named = (await service.score(tools.clip(), pb.Question(goal="cook an egg", category="motion"))).judgement
    assert (named.category, named.category_probability, named.reward) == ("motion", 1.0, moving.reward)


async def test_a_goal_of_no_category_is_told_and_decides_nothing(service: Any, tools: Any) -> None:
    question = pb.Question(goal="cook an egg")
    judgement = (await service.score(tools.grey(200), question)).judgement
    assert (judgement.unseen_category, judgement.category) == (True, "")
    assert math.isinf(judgement.uncertainty)
    assert not any(each.counts for each in judgement.dimensions)
    assert score_of(judgement, "brightness") > 0.7
    ranked = await service.rank([tools.grey(10), tools.grey(200)], question)
    assert [each.rank for each in ranked.ranked] == [1, 1]
    compared = await service.stub.Compare(
        pb.CompareRequest(question=question, first=tools.grey(10), second=tools.grey(200))
    )
    assert (compared.verdict, compared.first_better) == (pb.CompareResponse.VERDICT_TIE, 0.5)


async def test_weights_of_the_request_decide_without_the_category(service: Any, tools: Any) -> None:
    flicker = np.zeros((4, 8, 8, 3), np.uint8)
    flicker[::2] = 100
    clips = [tools.clip(flicker), tools.grey(120, 4)]
    by_brightness = await service.rank(clips, pb.Question(goal="a moving clip", weights={"brightness": 1.0}))
    assert [each.index for each in by_brightness.ranked] == [1, 0]
    by_motion = await service.rank(clips, pb.Question(goal="a bright clip", weights={"motion": 2.0}))
    assert [each.index for each in by_motion.ranked] == [0, 1]
    dark = await service.rank(clips, pb.Question(goal="a bright clip", weights={"brightness": -1.0}))
    assert [each.index for each in dark.ranked] == [0, 1]
    judgement = by_brightness.ranked[0].judgement
    assert judgement.reward == pytest.approx(score_of(judgement, "brightness") / 0.25)


async def test_candidates_that_cannot_be_told_apart_share_a_rank(service: Any, tools: Any) -> None:
    ranked = (await service.rank([tools.grey(value) for value in (10, 200, 100, 101)])).ranked
    assert [(each.index, each.rank) for each in ranked] == [(1, 1), (3, 2), (2, 2), (0, 4)]
    compared = await service.stub.Compare(
        pb.CompareRequest(question=BRIGHT, first=tools.grey(9), second=tools.grey(99))
    )
    assert compared.verdict == pb.CompareResponse.VERDICT_SECOND
    assert compared.first_better < 0.05


async def test_notes_say_what_the_score_rests_on(service: Any, tools: Any) -> None:
    question = pb.Question(goal="a bright clip of something quite bright")
    notes = (await service.score(tools.grey(9, 7), question)).judgement.notes
    assert notes == [
        "the judge does not know 3 of the goal's words: of, something, quite",
        "the judge heeds the first 4 words of the goal, of 7",
        "the clip has 6 steps; the judge learnt from up to 4",
    ]


async def test_a_clip_is_scored_alike_alone_and_among_others(service: Any, tools: Any) -> None:
    clips = [tools.clip(tools.pixels(2 + seed % 5, seed)) for seed in range(24)]
    alone = [(await service.score(clip)).judgement for clip in clips]
    together = await asyncio.gather(*(service.score(clip) for clip in clips), service.rank(clips))
    ranked = together.pop()
    assert [each.judgement for each in together] == alone
    assert {each.index: each.judgement for each in ranked.ranked} == dict(enumerate(alone))
    assert ranked.timing.mean_batch_size > 4


async def _chunks(clip_of: Any, frames: Any, actions: list[int], cuts: list[int]) -> AsyncIterator[Any]:
    begin = 0
    for end in [*cuts, len(frames)]:
        part = clip_of(frames[begin:end], actions[max(begin - 1, 0) : end - 1])
        yield pb.ScoreStreamRequest(question=BRIGHT if not begin else None, clip=part)
        begin = end


@pytest.mark.parametrize("cuts", [[1], [1, 2, 3, 4, 5, 6, 7], [4], [2, 5]])
async def test_a_stream_ends_with_the_score_of_the_whole(service: Any, tools: Any, cuts: list[int]) -> None:
    frames, actions = tools.pixels(8), [0, 1, 2, 1, 0, 2, 1]
    whole = (await service.score(tools.clip(frames, actions))).judgement
    told = [each async for each in service.stub.ScoreStream(_chunks(tools.clip, frames, actions, cuts))]
    assert [each.step_count for each in told] == [cut - 1 for cut in [*cuts, 8]]
    assert told[-1].judgement == whole
    assert told[0].HasField("judgement") == (cuts[0] > 1)
    for cut, each in zip(cuts, told, strict=False):
        if cut > 1:
            assert each.judgement == (await service.score(tools.clip(frames[:cut], actions[: cut - 1]))).judgement
    assert [each.HasField("model") for each in told] == [True] + [False] * len(cuts)


async def test_a_chunk_costs_a_chunk(service: Any, tools: Any) -> None:
    cuts = list(range(1, 64))
    call = service.stub.ScoreStream(_chunks(tools.clip, tools.pixels(64), [1] * 63, cuts))
    assert len([each async for each in call]) == 64
    runs = (await service.metric("worldtree_score_run_seconds_count"))['{model="tiny-judge"}']
    assert runs == 64


async def test_who_leaves_is_not_scored_to_the_end(service: Any, tools: Any) -> None:
    call = service.stub.ScoreStream()
    await call.write(pb.ScoreStreamRequest(question=BRIGHT, clip=tools.clip()))
    await call.read()
    call.cancel()
    with pytest.raises((asyncio.CancelledError, grpc.aio.AioRpcError)):
        await call.read()
    assert (await service.score(tools.clip())).judgement.category == "brightness"
    for _ in range(50):
        if not sum((await service.metric("worldtree_score_streams")).values()):
            break
        await asyncio.sleep(0.05)
    else:
        pytest.fail("the stream is still counted")


async def test_one_more_file_is_one_more_dimension_and_changes_no_bit(serve: Any, tools: Any, models: Path) -> None:
    before = (await (await serve()).score(tools.clip())).judgement
    TinyJudge().write_expert(models / "tiny-judge/1", "diligence")
    service = await serve()
    after = (await service.score(tools.clip())).judgement
    assert [each.name for each in after.dimensions] == ["brightness", "motion", "diligence"]
    assert list(after.dimensions[:2]) == list(before.dimensions)
    assert (after.reward, after.uncertainty) == (before.reward, before.uncertainty)
    lazy, eager = tools.clip(actions=[0, 0]), tools.clip(actions=[2, 2])
    ranked = await service.rank([lazy, eager], pb.Question(goal="a clip", weights={"diligence": 1.0}))
    assert [each.index for each in ranked.ranked] == [1, 0]
