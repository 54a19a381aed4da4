"""The client against `harmonia worker` in a process of its own, with a tiny model: what recipes will do."""

import asyncio
import json
import shutil
from pathlib import Path

import numpy as np
import pytest

from harmonia.client import HarmonyClient, StringThread, TrainingModel, get_client
from harmonia.errors import (
    InsufficientMemoryError,
    InvalidRequestError,
    SequenceTooLongError,
    TokenizerMismatchError,
    UnknownModelError,
)

ASK = StringThread([("user", "What is blue?")], metadata={"id": 7})
LESSON = StringThread([("user", "What is blue?"), ("assistant", "The sky.")])
WORSE = StringThread([("user", "What is blue?"), ("assistant", "Grass!!")])


@pytest.fixture
async def policy(client: HarmonyClient, tiny: Path) -> TrainingModel:
    builder = client.model(str(tiny), kv_cache_len=8192, tokens_to_generate=16)
    return await builder.with_adapter(rank=4).spawn_train("policy", 256)


async def learn(policy: TrainingModel, steps: int = 5, lr: float = 0.01) -> list[float]:
    """Losses of a few steps on one lesson."""
    losses = []
    for _ in range(steps):
        await asyncio.gather(*(policy.train_language_modelling(LESSON) for _ in range(4)))
        losses.append((await policy.optim_step(lr, 0.0, 1.0, False))["loss"])
    return losses


async def test_training_changes_what_answers_and_leaves_the_snapshot(policy: TrainingModel) -> None:
    reference, view = await policy.clone_inf(), policy.inf()
    before = await reference.logprobs(LESSON)
    assert await policy.logprobs(LESSON) == pytest.approx(before, abs=1e-5)
    losses = await learn(policy)
    assert losses[0] == pytest.approx(-before, rel=1e-4) and losses[-1] < losses[0]
    assert await view.logprobs(LESSON) > before + 1
    assert await reference.logprobs(LESSON) == pytest.approx(before, abs=1e-5)
    assert policy.get_optim_step() == 5


async def test_threads_and_tokens(policy: TrainingModel) -> None:
    tokens = await policy.tokenize_thread(LESSON)
    ids, _, weights = await policy.serialize_thread(LESSON)
    each = await policy.logprobs_per_token(tokens)
    assert (await policy.detokenize_thread(tokens)).get_turns() == LESSON.get_turns()
    assert list(tokens.token_ids) == ids
    assert len(each) == sum(weight != 0 for weight in weights) and weights[0] == 0
    assert await policy.temperature(0.0).logprobs(LESSON) == pytest.approx(sum(each), abs=1e-4)
    raw = await policy.raw_logprobs(ids)
    assert [raw[i] for i, weight in enumerate(weights) if weight] == pytest.approx(each, abs=1e-5)
    assert await policy.detokenize(await policy.tokenize("Blue é")) == "Blue é"
    rewards = await policy.char_to_token_rewards("Blue é", [1, 0, 0, 0, 0, 2])
    assert sum(rewards) == 3 and len(rewards) == len(await policy.tokenize("Blue é"))
    assert np.linalg.norm(await policy.embed(ids)) == pytest.approx(1, abs=1e-4)


async def test_sampling(policy: TrainingModel) -> None:
    greedy = policy.temperature(0.0).max_gen_len(6)
    samples = await asyncio.gather(*(policy.max_gen_len(8).generate_tokens(ASK) for _ in range(100)))
    assert all(1 <= sample.len_last_turn() <= 8 and sample.get_turn_weights() == [0, 1] for sample in samples)
    each = await asyncio.gather(*(policy.logprobs_per_token(sample) for sample in samples))
    assert [len(logprobs) for logprobs in each] == [sample.len_last_turn() for sample in samples]
    first, (second, timings) = await asyncio.gather(greedy.generate(ASK), greedy.generate(ASK, return_timings=True))
    assert first.last_content() == second.last_content()
    assert second.metadata is ASK.metadata and timings.ttft_from_creation_ms > 0
    tool = {"type": "function", "function": {"name": "add", "parameters": {"type": "object"}}}
    assert (await greedy.tools([tool]).generate(ASK)).get_turns()[-1].role == "assistant"
    assert await greedy.raw_token_create(await greedy.tokenize("blue")) != []


async def test_answers_follow_a_schema(policy: TrainingModel) -> None:
    schema = {"type": "object", "properties": {"ok": {"type": "boolean"}}, "required": ["ok"]}
    strict = policy.constrained_decoding(json.dumps(schema | {"additionalProperties": False}), "json").max_gen_len(64)
    answer = await strict.generate(ASK)
    assert set(json.loads(answer.last_content())) == {"ok"}
    tokens = await strict.generate_tokens(ASK)
    assert set(json.loads(tokens.get_fragments()[-1][1][-1]["parsed_json"])) == {"ok"}


async def test_losses_on_sampled_tokens(policy: TrainingModel) -> None:
    tokens = await policy.generate_tokens(ASK)
    own = await policy.logprobs_per_token(tokens)
    count = len(own)
    ids, patches, weights = await policy.serialize_tokenized_thread(tokens)
    await asyncio.gather(
        policy.train_ppo(tokens, own, [np.float32(1)] * count, 0.2),
        policy.train_grpo(tokens, own, own, np.full(count, 0.5, np.float32), clip_range=0.2, kl_beta=0.01),
        policy.train_gspo(tokens, own, own, [1.0], 0.2, 0.2, kl_beta=0.01),
        policy.train_dpo(LESSON, WORSE, ref_pos=-20.0, ref_neg=-20.0, beta=0.1),
        policy.train_tangents(ids[:-1], patches, weights[1:], ids[1:]),
    )
    logs = await policy.optim_step(lr=1e-3, wd=0.0, max_grad_norm=1.0, skip_nan_gradients=False)
    assert logs["num_samples"] == 5 and logs["grad_norm"] > 0
    with pytest.raises(InvalidRequestError):
        await policy.train_ppo(tokens, own, [1.0] * (count + 1), 0.2)


async def test_scoring_model_learns_a_score(client: HarmonyClient, tiny: Path) -> None:
    builder = client.model(str(tiny), kv_cache_len=2048).with_adapter(rank=4).into_scoring_model()
    value = await builder.spawn_train("value", 256)
    assert value.is_scalar() and await value.score_last_token(LESSON) == 0.0
    tokens = await value.tokenize_thread(LESSON)
    targets = [1.0] * len(await value.score(tokens))
    for _ in range(5):
        await asyncio.gather(
            value.train_mse(LESSON, 1.0),
            value.train_ranking(LESSON, WORSE),
            value.train_mse_per_token(tokens, targets),
        )
        await value.optim_step(0.01, 0.0, 1.0, False)
    assert await value.score_last_token(LESSON) > 0.05


async def test_saved_models_come_back(policy: TrainingModel, client: HarmonyClient) -> None:
    await learn(policy, steps=2)
    key = await policy.save("checkpoints/run/20", inference_only=False)
    saved = await policy.logprobs(LESSON)
    await learn(policy, steps=2)
    restored = await client.model(f"model_registry://{key}", kv_cache_len=2048).spawn_inference("restored")
    assert await restored.logprobs(LESSON) == pytest.approx(saved, abs=1e-4)
    await policy.load(f"model_registry://{key}")
    assert policy.get_optim_step() == 2
    assert await policy.logprobs(LESSON) == pytest.approx(saved, abs=1e-4)
    with pytest.raises(InvalidRequestError):
        await client.model(f"model_registry://{key}").with_adapter(False).spawn_train("whole", 256)


async def test_bad_input_ends_its_own_call_only(policy: TrainingModel, client: HarmonyClient, tiny: Path) -> None:
    calls = (
        policy.train_language_modelling(StringThread([("user", "q"), ("assistant", "a" * 300)])),
        policy.train_language_modelling(LESSON),
        client.model(str(tiny)).spawn_inference("policy"),
        client.model("model_registry://nothing").spawn_inference("other"),
        policy.score_last_token(LESSON),
    )
    long, good, taken, absent, scalar = await asyncio.gather(*calls, return_exceptions=True)
    assert isinstance(long, SequenceTooLongError) and good is None
    assert isinstance(taken, InvalidRequestError) and "policy" in str(taken)
    assert isinstance(absent, UnknownModelError | InvalidRequestError)
    assert isinstance(scalar, InvalidRequestError)
    assert (await policy.optim_step(1e-3))["num_samples"] == 1


async def test_what_does_not_fit_is_told_beforehand(client: HarmonyClient, tiny: Path) -> None:
    assert await client.model(str(tiny), kv_cache_len=2048).with_adapter().plan_train(128)
    with pytest.raises(InsufficientMemoryError):
        await client.model(str(tiny), kv_cache_len=10**10).spawn_inference("huge")


async def test_broken_line_loses_and_doubles_nothing(policy: TrainingModel) -> None:
    link = policy._instance.session.link
    calls = [asyncio.create_task(policy.train_language_modelling(LESSON)) for _ in range(50)]
    answers = [asyncio.create_task(policy.generate(ASK)) for _ in range(5)]
    await asyncio.sleep(0.02)
    link._connection.transport.abort()
    await asyncio.gather(*calls, *answers)
    assert (await policy.optim_step(1e-3))["num_samples"] == 50


async def test_other_clients_go_on(policy: TrainingModel, address: str, tiny: Path) -> None:
    async with await get_client(address) as other:
        with pytest.raises(InvalidRequestError, match="policy"):
            await other.model(str(tiny)).spawn_inference("policy")
        judge = await other.model(str(tiny)).spawn_inference("judge")
        await asyncio.gather(learn(policy, steps=2), *(judge.generate(ASK) for _ in range(20)))
    assert len(await learn(policy, steps=1)) == 1


async def test_names_are_free_again(client: HarmonyClient, tiny: Path) -> None:
    builder = client.model(str(tiny), kv_cache_len=1024)
    for _ in range(3):
        model = await builder.spawn_inference("again")
        await model.dealloc()
    with pytest.raises(InvalidRequestError, match="deallocated"):
        await model.generate(ASK)


async def test_a_model_is_described_without_being_loaded(
    policy: TrainingModel, client: HarmonyClient, tiny: Path
) -> None:
    base = await client.describe(str(tiny))
    assert (base.kind, base.family, base.max_seq_len, base.base) == ("model", "llama", 512, None)
    key = await policy.save("runs/described")
    saved = await client.describe(f"model_registry://{key}")
    assert (saved.kind, saved.base) == ("adapter", str(tiny))
    with pytest.raises(UnknownModelError, match="runs/described"):
        await client.describe("model_registry://runs/describd")


async def test_observers_see_every_step(policy: TrainingModel, client: HarmonyClient) -> None:
    seen = []
    client.observe(lambda name, metrics: seen.append((name, metrics)))
    (loss,) = await learn(policy, steps=1)
    ((name, metrics),) = seen
    tokens = (await policy.tokenize_thread(LESSON)).token_ids
    assert (name, metrics["loss"], metrics["num_input_tokens"]) == ("policy", loss, 4 * len(tokens))
    assert (metrics["optim_step"], metrics["per_token"]) == (1, 1)
    await policy.train_dpo(LESSON, WORSE, -5.0, -5.0, 0.1)
    await policy.optim_step(0.01)
    assert [(told["optim_step"], told["per_token"]) for _, told in seen] == [(1, 1), (2, 0)]


async def test_a_draft_must_share_the_tokenizer(client: HarmonyClient, tiny: Path, tmp_path: Path) -> None:
    builder = client.model(str(tiny), kv_cache_len=1024)
    twin, stranger = shutil.copytree(tiny, tmp_path / "twin"), shutil.copytree(tiny, tmp_path / "stranger")
    file = stranger / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_start|>", "<|begin|>"))
    model = await builder.with_draft(str(twin)).spawn_inference("drafted")
    assert (await model.generate(ASK)).completion() is not None
    with pytest.raises(TokenizerMismatchError, match=r"<\|im_start\|>' and '<\|begin\|>'"):
        await builder.with_draft(str(stranger)).spawn_inference("strange")
