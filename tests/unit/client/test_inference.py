"""Generating and scoring."""

import asyncio
import math
from typing import Any

import pytest

from harmonia.client import HarmonyClient, InferenceModel, StringThread, Timings, TokenizedThread, TrainingModel
from harmonia.errors import InvalidRequestError
from harmonia.protocol.instances import Score
from harmonia.protocol.messages import Cancel, Generate, ThreadPrompt
from tests.unit.client.small_worker import LOGPROB, SmallWorker

ASK = StringThread([("user", "Capital of France?")], metadata={"id": 3})
SCHEMA = '{"type": "object"}'
TOOL = {"type": "function", "function": {"name": "add"}}


async def test_generate_adds_one_assistant_turn(model: InferenceModel) -> None:
    answered = await model.generate(ASK)
    assert answered.get_turns() == [("user", "Capital of France?"), ("assistant", "Paris")]
    assert answered.get_turn_weights() == [1.0, 1.0]
    assert answered.metadata is ASK.metadata


async def test_generate_tokens_weights_only_the_new_turn(model: InferenceModel) -> None:
    tokens = await model.generate_tokens(ASK)
    assert tokens.get_turn_weights() == [0.0, 1.0]
    assert (tokens.len_last_turn(), bytes(tokens.last_content() or [])) == (5, b"Paris")
    assert tokens.metadata is ASK.metadata
    longer = await model.generate(tokens)
    assert [turn.role for turn in longer.get_turns()] == ["user", "assistant", "assistant"]


async def test_timings(model: InferenceModel) -> None:
    answered, timings = await model.generate(ASK, return_timings=True)
    assert answered.last_content() == "Paris"
    assert isinstance(timings, Timings)
    assert (timings.kv_cache_allocated_ms, timings.ttft_from_creation_ms, timings.tbt_ms) == (1.0, 3.0, 2.0)
    assert (timings.ttft_from_cache_allocation_sec, timings.tbt_sec) == (0.002, 0.002)
    assert timings.spec_dec_acceptance_rate is None


async def test_thousands_of_calls_do_not_fill_the_workers_queue(model: InferenceModel, worker: SmallWorker) -> None:
    worker.held = (Score,)
    scores = [asyncio.ensure_future(model.logprobs(StringThread([("user", f"{n}")]))) for n in range(2000)]
    await worker.until(Score, 512)
    await asyncio.sleep(0.05)
    assert len(worker.of(Score)) == 512
    scores[0].cancel()  # makes room, too
    await worker.until(Score, 513)
    worker.go_on.set()
    assert len(await asyncio.gather(*scores[1:])) == 1999


async def test_setters_return_copies_that_share_the_weights(model: InferenceModel, worker: SmallWorker) -> None:
    changed = model.temperature(0.0).top_p(0.9).max_gen_len(3).min_gen_len(2).tools([TOOL])
    assert type(changed) is type(model)
    assert (await changed.generate(ASK)).last_content() == "Par"
    assert (await model.generate(ASK)).last_content() == "Paris"
    first, second = worker.of(Generate)
    assert (first.sampling.temperature, first.sampling.top_p, first.sampling.min_tokens) == (0.0, 0.9, 2)
    assert isinstance(first.prompt, ThreadPrompt) and first.prompt.tools == (TOOL,) and first.parse_tools
    assert (second.sampling.temperature, second.sampling.top_p, second.sampling.max_tokens) == (1.0, 1.0, 2048)


async def test_answers_can_follow_a_schema(model: InferenceModel) -> None:
    strict = model.constrained_decoding(SCHEMA, "json")
    assert (await strict.generate(ASK)).last_content() == '{"a":1}'
    assert (await strict.generate_tokens(ASK)).get_fragments()[-1][1][-1]["parsed_json"] == '{"a":1}'
    with pytest.raises(InvalidRequestError, match="'json'"):
        model.constrained_decoding(SCHEMA, "xml")


async def test_tokens_and_back(model: InferenceModel) -> None:
    thread = ASK.assistant("Paris")
    tokens = await model.tokenize_thread(thread)
    back = await model.detokenize_thread(tokens)
    assert back.get_turns() == thread.get_turns()
    assert back.get_turn_weights() == [1.0, 1.0]
    assert back.metadata is tokens.metadata is ASK.metadata
    ids, patches, weights = await model.serialize_thread(thread)
    assert (ids, patches, weights) == await model.serialize_tokenized_thread(tokens)
    assert len(ids) == len(weights) and weights[0] == 0.0


async def test_plain_text(model: InferenceModel) -> None:
    assert await model.tokenize("hé") == list("hé".encode())
    assert await model.detokenize([104, 105]) == "hi"
    assert await model.raw_string_create("The capital is ") == "Paris"
    assert await model.raw_token_create([84]) == list(b"Paris")
    assert await model.embed([1, 2]) == pytest.approx([0.6, 0.8])


async def test_logprobs_sum_what_each_token_has(model: InferenceModel) -> None:
    thread = StringThread([("user", "q"), ("assistant", "abc")])
    each = await model.logprobs_per_token(await model.tokenize_thread(thread))
    assert each == [LOGPROB] * 4
    assert await model.temperature(0.0).logprobs(thread) == sum(each)
    assert await model.raw_logprobs([1, 2, 3]) == [0.0, LOGPROB, LOGPROB]
    assert await model.raw_logprobs([1]) == [0.0]


async def test_scores(client: HarmonyClient, model: InferenceModel) -> None:
    scorer = await client.model("/models/tiny").into_scoring_model().spawn_inference("reward")
    assert scorer.is_scalar() and not model.is_scalar()
    tokens = await model.tokenize_thread(ASK)
    assert len(await scorer.score(tokens)) == len(await model.logprobs_per_token(tokens))
    assert math.isclose(await scorer.score_last_token(ASK), LOGPROB)
    with pytest.raises(InvalidRequestError):
        await model.score(tokens)


async def test_char_rewards_keep_their_total(model: InferenceModel) -> None:
    assert await model.char_to_token_rewards("aé!", [1.0, 2.0, 4.0]) == [1.0, 0.0, 2.0, 4.0]
    with pytest.raises(InvalidRequestError, match="2 entries and the text 3"):
        await model.char_to_token_rewards("abc", [1.0, 2.0])


async def test_hundreds_of_calls_at_once(model: InferenceModel, worker: SmallWorker) -> None:
    tokens = await model.tokenize_thread(ASK)
    answers = await asyncio.gather(
        *(model.generate(ASK) for _ in range(200)), *(model.logprobs_per_token(tokens) for _ in range(200))
    )
    assert len(answers) == 400
    assert (len(worker.of(Generate)), len(worker.of(Score))) == (200, 200)
    assert len(worker.connections) == 1


async def test_cancelled_generation_is_cancelled_in_the_worker(model: InferenceModel, worker: SmallWorker) -> None:
    worker.held = (Generate,)
    asked = asyncio.create_task(model.generate(ASK))
    request = await worker.until(Generate)
    asked.cancel()
    assert (await worker.until(Cancel)).id == request.id


async def test_methods_can_be_replaced_on_the_class(client: HarmonyClient, monkeypatch: pytest.MonkeyPatch) -> None:
    original = InferenceModel.generate

    async def shouted(self: InferenceModel, thread: StringThread, kind: Any = None) -> StringThread:
        return (await original(self, thread)).user("!")

    monkeypatch.setattr(InferenceModel, "generate", shouted)
    policy = await client.model("/models/tiny").with_adapter().spawn_train("policy", 64)
    assert (await policy.temperature(0.5).generate(ASK)).last_content() == "!"


async def test_threads_of_another_kind_are_type_errors(model: InferenceModel) -> None:
    for thread in ("hello", [("user", "hello")], None):
        with pytest.raises(TypeError, match="StringThread"):
            await model.generate(thread)  # type: ignore[arg-type]
    assert isinstance(await model.generate_tokens(ASK), TokenizedThread)


async def test_models_and_clients_say_what_they_are(client: HarmonyClient, policy: TrainingModel) -> None:
    assert repr(policy).startswith("TrainingModel('policy', adapter on ")
    assert repr(client) == "HarmonyClient(connected, models: policy)"
    await client.close()
    assert "closed" in repr(client)
