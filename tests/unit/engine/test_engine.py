"""One request after another: what the engine promises to each."""

from __future__ import annotations

import time

import numpy as np
import pytest
import torch

from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.errors import InvalidRequestError, OverloadedError, SequenceTooLongError, UnknownModelError
from harmonia.protocol.sampling import SamplingParams
from tests.unit.engine.conftest import MakeEngine
from tests.unit.engine.tiny import VOCAB, Reference, drain

PROMPT = (3, 1, 4, 1, 5, 9, 2, 6, 5, 3)


def request(seq_id: int = 0, prompt: tuple[int, ...] = PROMPT, **kwargs: object) -> SequenceRequest:
    sampling = SamplingParams(**{"temperature": 0.0, "max_tokens": 8, **kwargs.pop("sampling", {})})
    fields = {"model": "base", "arrival_s": time.monotonic(), **kwargs}
    return SequenceRequest(seq_id=seq_id, token_ids=pack_ids(prompt), sampling=sampling, **fields)


def tokens_of(outputs: list) -> list[int]:
    return [token for output in outputs for token in output.token_ids]


def test_greedy_tokens_equal_the_reference(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine()
    engine.add(request())
    outputs = drain(engine)[0]
    assert tokens_of(outputs) == reference.generate(PROMPT, 8)
    assert outputs[-1].finish_reason == "length"


def test_end_tokens_end(make_engine: MakeEngine, reference: Reference) -> None:
    third = reference.generate(PROMPT, 8)[2]
    expected = reference.generate(PROMPT, 8)
    expected = expected[: expected.index(third) + 1]
    engine = make_engine()
    engine.add(request(sampling={"stop_token_ids": (third,)}))
    outputs = drain(engine)[0]
    assert tokens_of(outputs) == expected
    assert outputs[-1].finish_reason == "stop"


def test_min_tokens_postpones_the_end(make_engine: MakeEngine, reference: Reference) -> None:
    first = reference.generate(PROMPT, 8)[0]
    engine = make_engine()
    engine.add(request(sampling={"stop_token_ids": (first,), "min_tokens": 4, "max_tokens": 12}))
    assert first not in tokens_of(drain(engine)[0])[:4]


def test_a_second_turn_comes_from_the_cache(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine()
    engine.add(request(session_id="s"))
    answer = tokens_of(drain(engine)[0])
    follow_up = (*PROMPT, *answer, 7, 7, 7)
    engine.add(request(1, follow_up, session_id="s"))
    outputs = drain(engine)[1]
    assert outputs[0].cached_tokens == (len(PROMPT) + len(answer) - 1) // 4 * 4
    assert tokens_of(outputs) == reference.generate(follow_up, 8)


def test_chunks_of_a_prompt_give_the_same(make_engine: MakeEngine, reference: Reference) -> None:
    prompt = tuple(range(50))
    engine = make_engine(max_batch_tokens=7)
    engine.add(request(prompt=prompt))
    assert tokens_of(drain(engine)[0]) == reference.generate(prompt, 8)


def test_equal_prompts_are_computed_once(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine()
    for seq_id in range(3):
        engine.add(request(seq_id))
    outputs = drain(engine)
    assert all(tokens_of(outputs[seq_id]) == reference.generate(PROMPT, 8) for seq_id in range(3))
    assert [outputs[seq_id][0].cached_tokens for seq_id in range(3)] == [0, 8, 8]


def test_logprobs_are_those_of_the_full_vocabulary(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine()
    engine.add(request(sampling={"logprobs": 3, "prompt_logprobs": 2, "temperature": 0.7, "seed": 5, "top_k": 4}))
    outputs = drain(engine)[0]
    tokens = (*PROMPT, *tokens_of(outputs))
    expected = torch.log_softmax(reference.logits(tokens), dim=-1)
    scores = [*outputs[0].prompt_scores, *(score for output in outputs for score in output.scores)]
    assert scores[0].logprob is None
    for place in range(1, len(tokens)):
        row = expected[place - 1]
        assert scores[place].logprob == pytest.approx(row[tokens[place]].item(), abs=1e-5)
        best = row.topk(len(scores[place].top))
        assert [top.logprob for top in scores[place].top] == pytest.approx(best.values.tolist(), abs=1e-5)


def test_prompt_logprobs_survive_chunks_and_preemption(make_engine: MakeEngine) -> None:
    alone = make_engine()
    prompt = tuple(range(30))
    alone.add(request(prompt=prompt, sampling={"prompt_logprobs": 0, "max_tokens": 4}))
    expected = drain(alone)[0][0].prompt_scores
    crowded = make_engine(num_blocks=26, max_batch_tokens=9)
    for seq_id in range(3):
        crowded.add(request(seq_id, prompt, sampling={"prompt_logprobs": 0, "max_tokens": 60}))
    for outputs in drain(crowded).values():
        found = outputs[0].prompt_scores
        assert len(found) == len(prompt)
        assert [score.logprob for score in found[1:]] == pytest.approx([s.logprob for s in expected[1:]], abs=1e-5)


def test_a_seed_gives_the_same_tokens_in_any_company(make_engine: MakeEngine) -> None:
    settings = {"temperature": 1.0, "seed": 42, "top_p": 0.9, "max_tokens": 12}
    alone = make_engine()
    alone.add(request(sampling=settings))
    expected = tokens_of(drain(alone)[0])
    crowd = make_engine()
    for seq_id in range(3):
        crowd.add(request(seq_id, (*PROMPT[seq_id:], seq_id), sampling={"temperature": 1.3, "max_tokens": 9}))
    crowd.add(request(3, sampling=settings))
    assert tokens_of(drain(crowd)[3]) == expected


@pytest.mark.parametrize("temperature", [1e-6, 1e-40])
def test_a_temperature_too_small_for_fp32_is_greedy(
    make_engine: MakeEngine, reference: Reference, temperature: float
) -> None:
    engine = make_engine()
    engine.add(request(sampling={"temperature": temperature}))
    assert tokens_of(drain(engine)[0]) == reference.generate(PROMPT, 8)


def test_embeddings_are_normalised_last_states(make_engine: MakeEngine) -> None:
    engine = make_engine(max_batch_tokens=4)
    engine.add(request(embed=True))
    vector = np.frombuffer(drain(engine)[0][-1].embedding, dtype=np.float32)
    assert vector.shape == (32,)
    assert np.linalg.norm(vector) == pytest.approx(1.0, abs=1e-5)


def test_masks_decide_and_hold_back(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(request(constrained=True, sampling={"max_tokens": 2}))
    assert engine.step() == [], "no mask, no token"
    for place, allowed in enumerate((11, 40)):
        words = np.zeros(VOCAB // 32, dtype=np.int32)
        words[allowed // 32] = 1 << (allowed % 32)
        engine.provide_mask(0, place, words.tobytes())
        assert tokens_of(engine.step()) == [allowed]
    assert not engine.has_work


def test_a_paused_request_waits_and_lets_others_in(make_engine: MakeEngine, reference: Reference) -> None:
    engine = make_engine(num_blocks=24, max_running=2)
    engine.add(request(0, sampling={"max_tokens": 60}))
    engine.step()
    engine.hold(0)
    engine.add(request(1, tuple(range(60)), sampling={"max_tokens": 20}))
    steps = 0
    while 1 in {output.seq_id for output in engine.step()} or steps < 40:
        steps += 1
    assert engine.has_work
    engine.release(0)
    assert len(tokens_of(drain(engine)[0])) > 50


def test_a_cancelled_request_frees_its_blocks(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(request(sampling={"max_tokens": 50}))
    engine.step()
    assert engine.backbone.pool.num_held > 0
    engine.cancel(0)
    assert engine.backbone.pool.num_held == 0
    assert not engine.has_work


def test_an_overdue_first_token_is_an_error(make_engine: MakeEngine) -> None:
    engine = make_engine()
    engine.add(request(ttft_deadline_s=time.monotonic() - 1, max_ttft_ms=7))
    engine.add(request(1, ttft_deadline_s=time.monotonic() + 100, max_ttft_ms=100_000))
    outputs = drain(engine)
    assert outputs[0][0].error.code == "deadline_exceeded"
    assert outputs[0][0].error.details["limit"] == "max_ttft_ms"
    assert "7" in outputs[0][0].error.message
    assert outputs[1][-1].finish_reason == "length"
    assert engine.stats().by_model["base"]["ttft_timeouts"] == 1


def test_a_long_prompt_does_not_stall_those_that_generate(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=80, max_prefill_tokens=8)
    engine.add(request(0, sampling={"max_tokens": 40}))
    engine.step()
    engine.add(request(1, tuple(range(60)), sampling={"max_tokens": 2}))
    before_it = 0
    while 1 not in (seq_ids := {output.seq_id for output in engine.step()}):
        assert seq_ids == {0}, "every step brings a token of the one that generates"
        before_it += 1
    assert before_it == 7, "60 tokens in chunks of 8"


def test_a_long_prompt_is_not_overtaken_for_ever(make_engine: MakeEngine) -> None:
    engine = make_engine(num_blocks=24, max_bypass_s=0.0)
    for seq_id in range(3):
        engine.add(request(seq_id, (seq_id, 1, 2, 3), sampling={"max_tokens": 30}))
    engine.step()
    engine.add(request(3, tuple(range(64)), sampling={"max_tokens": 4}))
    for seq_id in range(4, 30):
        engine.add(request(seq_id, (seq_id, 1, 2, 3), sampling={"max_tokens": 30}))
    order = []
    while engine.has_work:
        order += [output.seq_id for output in engine.step() if output.finish_reason]
    assert order.index(3) <= 4, "only those that ran before it may end before it"


@pytest.mark.parametrize(
    ("bad", "error", "named"),
    [
        ({"prompt": ()}, InvalidRequestError, "empty"),
        ({"prompt": tuple([1] * 96)}, SequenceTooLongError, "96"),
        ({"prompt": (1, VOCAB)}, InvalidRequestError, str(VOCAB)),
        ({"prompt": (1, -1)}, InvalidRequestError, "-1"),
        ({"model": "nobody"}, UnknownModelError, "'base'"),
        ({"sampling": {"temperature": -1.0}}, InvalidRequestError, "temperature"),
        ({"sampling": {"temperature": float("nan")}}, InvalidRequestError, "temperature"),
        ({"sampling": {"top_p": 0.0}}, InvalidRequestError, "top_p"),
        ({"sampling": {"repetition_penalty": 1e-40}}, InvalidRequestError, "repetition_penalty"),
        ({"sampling": {"logit_bias": {VOCAB: 1.0}}}, InvalidRequestError, "logit_bias"),
        ({"sampling": {"max_tokens": 0}}, InvalidRequestError, "max_tokens"),
        ({"sampling": {"logprobs": 21}}, InvalidRequestError, "logprobs"),
    ],
)
def test_bad_requests_are_refused_before_they_take_anything(
    make_engine: MakeEngine, bad: dict, error: type, named: str
) -> None:
    engine = make_engine()
    with pytest.raises(error, match=named):
        engine.add(request(**bad))
    assert not engine.has_work
    assert engine.backbone.pool.num_held == 0


def test_a_full_queue_says_when_to_come_back(make_engine: MakeEngine) -> None:
    engine = make_engine(max_queue=2)
    engine.add(request(0))
    engine.add(request(1))
    with pytest.raises(OverloadedError) as refused:
        engine.add(request(2))
    assert refused.value.details["retry_after_s"] > 0
