"""Losses worked out by the trainer must be those of the engine."""

import asyncio
import math
from collections.abc import Awaitable, Callable

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.client import StringThread, TokenizedThread, TrainingModel
from harmonia.errors import InvalidRequestError, SequenceTooLongError
from harmonia.protocol.losses import Grpo, Gspo
from harmonia.train.losses import gradient
from harmonia.trainers.tangents import grpo_loss, train_dpo_tangents, train_grpo_tangents, train_sft_tangents
from tests.unit.trainers.recorders import TOO_LONG

GOOD = StringThread([("user", "What is blue?"), ("assistant", "The sky is.")])
BAD = StringThread([("user", "What is blue?"), ("assistant", "Grass, they say.")])
TOKEN = st.tuples(
    st.floats(-8, 0), st.sampled_from([-3.0, -0.3, -0.05, 0.0, 0.05, 0.3, 3.0]), st.floats(-2, 2), st.floats(-3, 3)
)
"""Log-probability now; by how much it moved since it was sampled; reference less now; advantage."""


def columns(tokens: list[tuple[float, ...]]) -> tuple[list[float], ...]:
    """The four lists of `grpo_loss`."""
    now, moved, drift, advantage = (np.array(column) for column in zip(*tokens, strict=True))
    return now.tolist(), (now - moved).tolist(), (now + drift).tolist(), advantage.tolist()


def engine(loss: Grpo | Gspo, logprobs: list[float]) -> list[float]:
    """Minus the derivative that the engine uses."""
    values = torch.tensor(logprobs, dtype=torch.float64)
    _, (slopes,) = gradient(loss, [values], [torch.ones_like(values)])
    return (-slopes).tolist()


@given(st.lists(TOKEN, min_size=1, max_size=8), st.sampled_from([0.0, 0.1, 0.2]), st.sampled_from([0.0, 0.1]))
def test_grpo_is_the_engines(tokens: list[tuple[float, ...]], clip_range: float, kl_beta: float) -> None:
    now, sampled, reference, advantages = columns(tokens)
    tangents, _ = grpo_loss(now, sampled, reference, advantages, clip_range, kl_beta)
    loss = Grpo(
        trajectory_logprobs=tuple(sampled),
        reference_logprobs=tuple(reference),
        advantages=tuple(advantages),
        clip_range=clip_range,
        kl_beta=kl_beta,
    )
    assert tangents.tolist() == pytest.approx(engine(loss, now))


@given(st.lists(TOKEN, min_size=1, max_size=8), st.sampled_from([0.01, 0.2]))
def test_gspo_is_the_engines(tokens: list[tuple[float, ...]], clip_range: float) -> None:
    now, sampled, reference, advantages = columns(tokens)
    tangents, _ = grpo_loss(now, sampled, reference, advantages[:1], clip_range, 0.1, use_sequence_lps=True)
    loss = Gspo(
        trajectory_logprobs=tuple(sampled),
        reference_logprobs=tuple(reference),
        advantage=advantages[0],
        left_clip=clip_range,
        right_clip=clip_range,
        kl_beta=0.1,
    )
    assert tangents.tolist() == pytest.approx(engine(loss, now))


def test_grpo_metrics() -> None:
    _, metrics = grpo_loss([-1.0, -2.0], [-1.5, -2.0], [-1.0, -1.0], [1.0, 1.0], 0.1, 0.1)
    assert metrics == pytest.approx(
        {"policy/pg_clipfrac": 0.5, "policy/inner_kl_div": 0.5 * 0.25 / 2, "policy/Dkl": (math.e - 2) / 2}
    )


def test_a_clipped_ratio_may_be_as_large_as_it_likes() -> None:
    tangents, _ = grpo_loss([-1.0, -1.0], [-900.0, -900.0], [-1.0, -1.0], [1.0, 0.0], 0.1, 0.1)
    assert tangents.tolist() == [0, 0]


def test_lists_of_different_lengths_are_refused() -> None:
    with pytest.raises(InvalidRequestError, match="reference_logprobs has 1 entries for 2 weighted tokens"):
        grpo_loss([-1.0, -1.0], [-1.0, -1.0], [-1.0], [1.0], 0.1, 0.1)


# -------------------------------------------------------------------------------------------------- on a real model


async def gradient_of(model: TrainingModel, work: Awaitable[object]) -> dict[str, float]:
    """What a step reports about the gradient that the work adds, without moving the model."""
    await work
    logs = await model.optim_step(0.0, 0.0, 1.0, False)
    return {key: logs[key] for key in ("loss", "grad_norm", "num_tokens", "num_samples")}


async def test_language_modelling(policy: TrainingModel) -> None:
    thread = StringThread([("user", "Name two."), ("assistant", "Red."), ("user", "And?"), ("assistant", "Blue.")])
    thread = thread.with_weight_all_assistant_turns()
    metrics = await train_sft_tangents(policy, thread)
    by_hand = await gradient_of(policy, asyncio.sleep(0))
    built_in = await gradient_of(policy, policy.train_language_modelling(thread))
    assert by_hand == pytest.approx(built_in)
    assert metrics["policy/num_tokens"] == built_in["num_tokens"]
    assert metrics["policy/loss"] * metrics["policy/num_tokens"] == pytest.approx(built_in["loss"])


async def test_a_turn_may_have_another_weight_than_1(policy: TrainingModel) -> None:
    thread = StringThread.from_json(GOOD.to_json().replace('"mult":1.0', '"mult":0.5'))
    assert thread.get_turn_weights() == [0.0, 0.5]
    by_hand = await gradient_of(policy, train_sft_tangents(policy, thread))
    assert by_hand == pytest.approx(await gradient_of(policy, policy.train_language_modelling(thread)))


async def test_preferences(policy: TrainingModel) -> None:
    logprobs = [await policy.logprobs(GOOD), await policy.logprobs(BAD)]
    reference = [logprobs[0] - 1.0, logprobs[1] + 2.0]
    metrics = await train_dpo_tangents(policy, GOOD, BAD, *reference, 0.1)
    by_hand = await gradient_of(policy, asyncio.sleep(0))
    built_in = await gradient_of(policy, policy.train_dpo(GOOD, BAD, *reference, 0.1))
    assert metrics == pytest.approx(
        {
            "policy/chosen_rewards": 0.1,
            "policy/rejected_rewards": -0.2,
            "policy/reward_accuracy": 1.0,
            "policy/reward_margin": 0.3,
            "policy/loss": math.log1p(math.exp(-0.3)),
        },
        rel=1e-3,
    )
    assert metrics["policy/loss"] == pytest.approx(built_in["loss"], rel=1e-4)
    assert (by_hand["num_samples"], built_in["num_samples"]) == (2, 1)
    assert 2 * by_hand["grad_norm"] == pytest.approx(built_in["grad_norm"], rel=1e-4)


Policy = Callable[[TrainingModel, TokenizedThread, list[float]], Awaitable[object]]


@pytest.mark.parametrize(
    ("by_hand", "built_in"),
    [
        (
            lambda m, t, lp: train_grpo_tangents(m, t, [x - 0.05 for x in lp], lp, [0.7] * len(lp), 0.1, 0.1),
            lambda m, t, lp: m.train_grpo(t, [x - 0.05 for x in lp], lp, [0.7] * len(lp), 0.1, 0.1),
        ),
        (
            lambda m, t, lp: train_grpo_tangents(m, t, lp, lp, [0.7], 0.1, 0.0, use_sequence_lps=True),
            lambda m, t, lp: m.train_gspo(t, lp, lp, [0.7], 0.1, 0.1, 0.0),
        ),
    ],
    ids=["grpo", "gspo"],
)
async def test_sampled_answers(policy: TrainingModel, by_hand: Policy, built_in: Policy) -> None:
    sample = await policy.tokenize_thread(GOOD)
    logprobs = await policy.logprobs_per_token(sample)
    norms = [(await gradient_of(policy, train(policy, sample, logprobs)))["grad_norm"] for train in (by_hand, built_in)]
    assert norms[0] == pytest.approx(norms[1], rel=1e-4)


@pytest.mark.parametrize("pair", [(GOOD, TOO_LONG), (TOO_LONG, GOOD)])
async def test_of_a_pair_with_a_side_that_is_too_long_neither_side_counts(
    policy: TrainingModel, pair: tuple[StringThread, StringThread]
) -> None:
    with pytest.raises(SequenceTooLongError):
        await train_dpo_tangents(policy, *pair, -1.0, -1.0, 0.1)
    assert (await gradient_of(policy, policy.train_language_modelling(GOOD)))["num_samples"] == 1
