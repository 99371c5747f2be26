"""Inference: a request is given to the service of its model, and what that says becomes the answers."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable
from contextlib import aclosing
from dataclasses import replace
from functools import partial

from tritonclient.grpc import service_pb2 as pb
from worldtree_runtime.errors import InvalidRequest

from worldtree_gateway import oip_experts, oip_judges, oip_planners, oip_worlds
from worldtree_gateway.json_thread import JsonThread
from worldtree_gateway.oip_answer import Answer, Answers, is_cached, seconds
from worldtree_gateway.oip_calls import Asker, Calls, explained
from worldtree_gateway.oip_catalog import Catalog
from worldtree_gateway.oip_models import Model
from worldtree_gateway.oip_requests import InferRequest, Options, read_options, read_request
from worldtree_gateway.oip_sequences import Key, Sequence, Sequences
from worldtree_gateway.oip_statistics import Spent, Statistics
from worldtree_gateway.oip_steering import Steering
from worldtree_gateway.oip_tensors import typed_count
from worldtree_gateway.oip_walks import Walks


class Inference:
    """Nothing of a sequence is left behind after `give_up_all`. `thread`: where typed contents are read and written."""

    def __init__(
        self,
        calls: Calls,
        catalog: Catalog,
        sequences: Sequences,
        walks: Walks,
        steering: Steering,
        statistics: Statistics,
        thread: JsonThread,
        *,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._calls = calls
        self._catalog = catalog
        self._sequences = sequences
        self._walks = walks
        self._steering = steering
        self._statistics = statistics
        self._thread = thread
        self._clock = clock

    async def answers(
        self, message: pb.ModelInferRequest, asker: Asker, *, owner: str, call: object, stream: bool
    ) -> AsyncGenerator[pb.ModelInferResponse]:
        """The responses to a request: one, or for a world and in a `stream` one for each chunk. `call`: the RPC that
        it came in.

        Raises WorldtreeError, or AioRpcError where a service failed in a way that no error of ours explains. Requests
        of one sequence are answered in the order in which the first step of each is taken.
        """
        options = read_options(message)
        if options.timeout_s is not None:
            asker = asker.within(options.timeout_s)
        if options.sequence is None:
            model = await self._catalog.find(message.model_name, message.model_version, asker)
            answered = self._answered(
                message, options, model, lambda request: self._alone(request, model, asker, stream), stream
            )
            async with aclosing(answered) as responses:
                async for response in responses:
                    yield response
            return
        # nothing may be awaited before the turn is taken
        key = Key(owner, message.model_name, options.sequence)
        async with self._sequences.turn(key, start=options.start, call=call) as turn:
            model = await self._model_of(turn, message, asker, anew=options.start)
            turn.asker = asker
            answered = self._answered(
                message, options, model, lambda request: self._in_turn(request, model, turn, asker, stream), stream
            )
            async with aclosing(answered) as responses:
                async for response in responses:
                    yield response

    async def give_up_idle(self) -> None:
        """Gives back the sessions of sequences that never end."""
        for sequence in self._sequences.expired():
            await self._give_back(sequence)

    async def give_up_all(self) -> None:
        await asyncio.gather(*(self._give_back(sequence) for sequence in self._sequences.all()))

    async def _answered(
        self,
        message: pb.ModelInferRequest,
        options: Options,
        model: Model,
        answers: Callable[[InferRequest], Answers],
        stream: bool,
    ) -> AsyncGenerator[pb.ModelInferResponse]:
        """Reads the request, writes the answers to it, and counts."""
        began_s, output_s, spent = self._clock(), 0.0, Spent()
        try:
            request = await self._thread.work(partial(read_request, message, model, options), typed_count(message))
            input_s = self._clock() - began_s
            async with aclosing(answers(request)) as found:
                async for answer in found:
                    spent.add(answer.spent)
                    # the gateway may have chosen another than the newest, where none was asked for
                    answered = model if answer.version is None else replace(model, version=answer.version)
                    model = answered if answered.version else model
                    ready_s = self._clock()
                    made = partial(
                        request.response,
                        answered,
                        answer.outputs,
                        final=answer.final if stream else None,
                        session=answer.session,
                    )
                    response = await self._thread.work(made, request.element_bytes(answer.outputs))
                    output_s += self._clock() - ready_s
                    yield response
        except Exception:
            self._statistics.failed(model, self._clock() - began_s)
            raise
        self._statistics.succeeded(model, self._clock() - began_s, spent, input_s=input_s, output_s=output_s)

    def _alone(self, request: InferRequest, model: Model, asker: Asker, stream: bool) -> Answers:
        model.check_complete(request.inputs)
        match model.section:
            case oip_worlds.SECTION:
                return self._walks.clip(request, model, asker, stream=stream)
            case oip_planners.SECTION:
                return self._steering.alone(request, model, asker)
            case oip_experts.SECTION:
                return self._prediction(request, model, asker)
            case _:
                return self._score(request, model, asker)

    def _in_turn(self, request: InferRequest, model: Model, turn: Sequence, asker: Asker, stream: bool) -> Answers:
        turn.model = turn.model if turn.open and not request.options.start else model
        if model.section == oip_planners.SECTION:
            return self._steering.in_turn(request, model, turn, asker)
        return self._walks.in_turn(request, model, turn, asker, stream=stream)

    async def _prediction(self, request: InferRequest, model: Model, asker: Asker) -> Answers:
        message = oip_experts.predict_request(model, request.inputs, request.outputs, version=request.version)
        async with explained(oip_experts.WORDS):
            call = self._calls.multitask.Predict(message, **asker.options)
            answer = await call
        timing = answer.timing
        spent = Spent(
            inference_count=message.images.tensor.shape[0],
            queue_s=seconds(timing.queue_duration),
            infer_s=seconds(timing.merge_duration) + seconds(timing.run_duration),
            batch_size=timing.batch_size,
            cached=await is_cached(call),
        )
        bare = len(request.inputs["image"].shape) == 3
        yield Answer(oip_experts.outputs(answer, bare=bare), spent, version=answer.model.version)

    async def _score(self, request: InferRequest, model: Model, asker: Asker) -> Answers:
        async with explained(oip_judges.WORDS):
            message = oip_judges.score_request(model, request.inputs, version=request.version)
            call = self._calls.reward.Score(message, **asker.options)
            answer = await call
        timing = answer.timing
        spent = Spent(
            inference_count=1,
            queue_s=seconds(timing.queue_duration),
            infer_s=seconds(timing.run_duration),
            batch_size=round(timing.mean_batch_size),
            cached=await is_cached(call),
        )
        yield Answer(oip_judges.outputs(answer), spent, version=answer.model.version)

    async def _model_of(self, sequence: Sequence, message: pb.ModelInferRequest, asker: Asker, *, anew: bool) -> Model:
        model, version = sequence.model, message.model_version
        if anew or model is None:
            return await self._catalog.find(message.model_name, version, asker)
        if version not in ("", model.version):
            raise InvalidRequest(
                "model_version",
                f'model_version must be empty or "{model.version}", as when the sequence began, got "{version[:80]}"',
            )
        return model

    async def _give_back(self, sequence: Sequence) -> None:
        self._steering.give_back(sequence)
        await self._walks.give_back(sequence)
