"""Training calls, the optimizer, copies and files."""

import asyncio
from collections.abc import Awaitable, Callable

import numpy as np
import pytest

from harmonia.client import HarmonyClient, InferenceModel, StringThread, TokenizedThread, TrainingModel, get_client
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.protocol import losses
from harmonia.protocol.instances import Save, Train
from tests.unit.client.small_worker import SmallWorker

GOOD = StringThread([("user", "q"), ("assistant", "abc")])
BAD = StringThread([("user", "q"), ("assistant", "no")])
FOUR = [0.25, -1.0, 0.5, 2.0]

Call = Callable[[TrainingModel, TokenizedThread], Awaitable[None]]


@pytest.mark.parametrize(
    ("call", "loss"),
    [
        (lambda m, t: m.train_language_modelling(GOOD), losses.LanguageModelling()),
        (lambda m, t: m.train_mse(GOOD, 2), losses.Mse(target=2.0)),
        (lambda m, t: m.train_mse_per_token(t, FOUR), losses.MsePerToken(targets=tuple(FOUR))),
        (lambda m, t: m.train_ranking(GOOD, BAD), losses.Ranking()),
        (
            lambda m, t: m.train_dpo(GOOD, BAD, -2.5, -1.5, 0.1),
            losses.Dpo(reference_positive=-2.5, reference_negative=-1.5, beta=0.1),
        ),
        (
            lambda m, t: m.train_ppo(t, FOUR, [1.0] * 4, 0.25),
            losses.Ppo(trajectory_logprobs=tuple(FOUR), advantages=(1.0,) * 4, clip_range=0.25),
        ),
        (
            lambda m, t: m.train_grpo(t, FOUR, [0.5] * 4, [np.float32(1)] * 4, 0.25, 0.5),
            losses.Grpo(
                trajectory_logprobs=tuple(FOUR),
                reference_logprobs=(0.5,) * 4,
                advantages=(1.0,) * 4,
                clip_range=0.25,
                kl_beta=0.5,
            ),
        ),
        (
            lambda m, t: m.train_gspo(
                thread=t,
                trajectory_logprobs=np.array(FOUR, dtype=np.float32),
                reference_logprobs=[0.5] * 4,
                advantage=[1.0],
                left_clip=0.25,
                right_clip=0.5,
                kl_beta=0,
            ),
            losses.Gspo(
                trajectory_logprobs=tuple(FOUR),
                reference_logprobs=(0.5,) * 4,
                advantage=1.0,
                left_clip=0.25,
                right_clip=0.5,
                kl_beta=0.0,
            ),
        ),
        (
            lambda m, t: m.train_trust_region_mse(t, FOUR, clip_center=[0.0] * 4, clip_range=0.5),
            losses.TrustRegionMse(targets=tuple(FOUR), clip_centers=(0.0,) * 4, clip_range=0.5),
        ),
        (
            lambda m, t: m.train_tangents([1, 2], [], np.array([0.5, 1.0]), np.array([2, 3])),
            losses.Tangents(tangents=(0.5, 1.0)),
        ),
    ],
)
async def test_each_loss_arrives_as_asked(
    policy: TrainingModel, worker: SmallWorker, call: Call, loss: losses.Loss
) -> None:
    assert await call(policy, await policy.tokenize_thread(GOOD)) is None
    assert worker.of(Train)[0].loss == loss


async def test_a_teacher_is_named(policy: TrainingModel, model: InferenceModel, worker: SmallWorker) -> None:
    tokens = await policy.tokenize_thread(GOOD)
    await policy.train_distillation(tokens, model)
    await policy.train_distillation(tokens, model.temperature(0.5), divergence="total_variation")
    assert [message.loss for message in worker.of(Train)] == [
        losses.Distillation(teacher="judge"),
        losses.Distillation(teacher="judge", divergence="total_variation"),
    ]


async def test_bad_teachers_are_refused_before_anything_is_sent(
    policy: TrainingModel, model: InferenceModel, worker: SmallWorker
) -> None:
    tokens = await policy.tokenize_thread(GOOD)
    with pytest.raises(InvalidRequestError, match="forward_kl, reverse_kl, total_variation; got 'kl'"):
        await policy.train_distillation(tokens, model, divergence="kl")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="a model that was spawned, not str"):
        await policy.train_distillation(tokens, "judge")  # type: ignore[arg-type]
    async with await get_client(worker.address) as other:
        stranger = await other.model("/models/tiny").spawn_inference("stranger")
        with pytest.raises(InvalidRequestError, match="'stranger' was spawned by another client"):
            await policy.train_distillation(tokens, stranger)
    await model.dealloc()
    with pytest.raises(InvalidRequestError, match="'judge' was deallocated"):
        await policy.train_distillation(tokens, model)
    assert not worker.of(Train)


async def test_lists_of_wrong_length_raise_on_their_own_call(policy: TrainingModel) -> None:
    tokens = await policy.tokenize_thread(GOOD)
    calls = (policy.train_mse_per_token(tokens, [1.0] * count) for count in (4, 3, 4))
    done = await asyncio.gather(*calls, return_exceptions=True)
    assert [type(result) for result in done] == [type(None), InvalidRequestError, type(None)]
    with pytest.raises(InvalidRequestError, match="one advantage"):
        await policy.train_gspo(tokens, FOUR, FOUR, [1.0, 2.0], 0.1, 0.1, 0.0)


async def test_long_samples_raise(policy: TrainingModel) -> None:
    with pytest.raises(SequenceTooLongError, match="max_batch_size is 64"):
        await policy.train_language_modelling(StringThread([("assistant", "x" * 100)]))


async def test_images_and_words_are_refused(policy: TrainingModel) -> None:
    with pytest.raises(InvalidRequestError, match="images"):
        await policy.train_tangents([1], [(0, b"png")], [1.0], [2])
    with pytest.raises((TypeError, ValueError)):
        await policy.train_mse(GOOD, "much")  # type: ignore[arg-type]


async def test_steps_are_counted(policy: TrainingModel, worker: SmallWorker) -> None:
    await asyncio.gather(*(policy.train_language_modelling(GOOD) for _ in range(8)))
    logs = await policy.optim_step(1e-3, 0.0, 1.0, False)
    logs["mine"] = 1.0
    assert (logs["num_samples"], logs["lr"], policy.get_optim_step()) == (8, 1e-3, 1)
    policy.set_optim_step(10)
    assert policy.get_optim_step() == 10
    await policy.optim_step(lr=np.float32(0.5), wd=0, max_grad_norm=1, skip_nan_gradients=True)
    assert policy.get_optim_step() == worker.models["policy"].adam_step == 11
    with pytest.raises(InvalidRequestError, match="0 or more"):
        policy.set_optim_step(-1)


async def test_settings_leave_a_model_trainable(policy: TrainingModel) -> None:
    short = policy.max_gen_len(2)
    await short.train_language_modelling(GOOD)
    await short.optim_step(0.1, 0.0, 1.0, False)
    assert (type(short), policy.get_optim_step()) == (TrainingModel, 1)
    assert "generate" not in vars(TrainingModel) and "generate_tokens" not in vars(TrainingModel)


async def test_views_live_and_snapshots_are_their_own(policy: TrainingModel, worker: SmallWorker) -> None:
    view, snapshot = policy.inf(), await policy.clone_inf()
    assert type(view) is type(snapshot) is InferenceModel
    assert set(worker.models) > {"policy"} and len(worker.models) == 2
    assert snapshot.get_builder_args() == policy.get_builder_args()
    await snapshot.dealloc()
    assert set(worker.models) == {"policy"}
    assert (await view.generate(StringThread([("user", "q")]))).last_content() == "Paris"


async def test_saving_gives_the_key_and_loading_the_step(policy: TrainingModel, worker: SmallWorker) -> None:
    assert await policy.save("checkpoints/local/20", inference_only=False) == "checkpoints/local/20"
    assert await policy.save("draft", draft_target="big", num_draft_steps=4) == "draft"
    first, second = worker.of(Save)
    assert (first.inference_only, first.info) == (False, {})
    assert (second.inference_only, second.info) == (True, {"draft_target": "big", "num_draft_steps": 4})
    await policy.load("model_registry://checkpoints/local/20")
    assert policy.get_optim_step() == 40


async def test_failure_of_a_step_count_is_logged(
    client: HarmonyClient, worker: SmallWorker, caplog: pytest.LogCaptureFixture
) -> None:
    policy = await client.model("/models/tiny").spawn_train("policy", 64)
    worker.models.clear()
    policy.set_optim_step(3)
    with pytest.raises(InvalidRequestError, match="no model"):
        await policy.optim_step(0.1)
    assert "no model 'policy'" in caplog.text
