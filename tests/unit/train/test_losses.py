"""Losses and their derivatives against the closed forms that recipes rely on, and every refusal."""

import math

import msgspec
import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harmonia.errors import InvalidRequestError
from harmonia.protocol.losses import (
    Dpo,
    Grpo,
    Gspo,
    LanguageModelling,
    Loss,
    Mse,
    MsePerToken,
    Ppo,
    Ranking,
    Tangents,
    TrustRegionMse,
)
from harmonia.train.losses import check, evaluate, gradient, pair_tangents
from harmonia.train.samples import Sample

SAMPLE = Sample.from_weighted([1, 2, 3], [0, 1, 1])
LAST = Sample.last_token([1, 2, 3])
NAN, INF = float("nan"), float("inf")
PPO = Ppo(trajectory_logprobs=(-1.0, -1.0), advantages=(1.0, 1.0), clip_range=0.1)
GRPO = Grpo(**msgspec.structs.asdict(PPO), reference_logprobs=(-1.0, -1.0), kl_beta=0.1)
GSPO = Gspo(
    trajectory_logprobs=(-1.0, -1.0),
    reference_logprobs=(-1.0, -1.0),
    advantage=1.0,
    left_clip=0.1,
    right_clip=0.1,
    kl_beta=0.1,
)
DPO = Dpo(reference_positive=-1.0, reference_negative=-2.0, beta=0.1)
TRUST = TrustRegionMse(targets=(1.0, 1.0), clip_centers=(0.0, 0.0), clip_range=0.1)
GOOD = (
    (LanguageModelling(), [SAMPLE]),
    (PPO, [SAMPLE]),
    (GRPO, [SAMPLE]),
    (GSPO, [SAMPLE]),
    (DPO, [SAMPLE, SAMPLE]),
    (Tangents(tangents=(1.0, 0.0, 1.0)), [SAMPLE]),
    (Ranking(), [LAST, LAST]),
    (Mse(target=1.0), [LAST]),
    (MsePerToken(targets=(1.0, 1.0)), [SAMPLE]),
    (TRUST, [SAMPLE]),
)
SCORES = (Ranking, Mse, MsePerToken, TrustRegionMse)
LOGPROB = st.floats(-30, 0, width=32)
ADVANTAGE = st.sampled_from((0.0, 1.0, -1.0)) | st.floats(-5, 5, width=32)
NUMBER = st.floats(-10, 10, width=32)
CLIP = st.sampled_from((0.0, 0.01, 0.1, 0.2, 1.5))
BETA = st.floats(0, 2)


def rows(*columns):
    """Lists of one length, one per column."""
    return st.lists(st.tuples(*columns), min_size=1, max_size=12).map(lambda table: tuple(zip(*table, strict=True)))


def nearby(logprobs):
    """Log-probabilities of an update ago: some the same, some close to a clip range, some far away."""
    return st.tuples(*(st.sampled_from((0.0, 0.05, -0.05, 0.3, -0.3, 4.0, -4.0)).map(x.__add__) for x in logprobs))


def run(loss, *sides):
    """(loss, gradients) as Python floats; weights of 2 show where their magnitude must not count."""
    values = [torch.tensor(side, dtype=torch.float64) for side in sides]
    total, gradients = gradient(loss, values, [torch.full_like(v, 2) for v in values])
    return float(total), *(g.tolist() for g in gradients)


def close(expected):
    return pytest.approx(expected, rel=1e-9, abs=1e-12)


def clipped(logprob, trajectory, advantage, left, right):
    ratio = math.exp(logprob - trajectory)
    outside = ratio - 1 > right or 1 - ratio > left
    return outside and np.sign(advantage) == np.sign(logprob - trajectory)


def surrogate(logprob, trajectory, advantage, left, right):
    ratio = math.exp(logprob - trajectory)
    return -min(ratio * advantage, min(max(ratio, 1 - left), 1 + right) * advantage)


@given(rows(LOGPROB, NUMBER))
def test_language_modelling(columns):
    logprobs, weights = (torch.tensor(column, dtype=torch.float64) for column in columns)
    total, (slopes,) = gradient(LanguageModelling(), [logprobs], [weights])
    assert float(total) == close(-sum(w * lp for lp, w in zip(*columns, strict=True)))
    assert slopes.tolist() == (-weights).tolist()


def test_tangents_are_minus_the_derivative():
    loss = Tangents(tangents=(0.0, 0.5, 0.0, -3.0))
    sample = Sample.from_tangents([1, 2, 3, 4], [2, 3, 4, 5], loss.tangents)
    check(loss, [sample], is_scalar=False)
    total, (slopes,) = gradient(loss, [torch.tensor([-1.0, -2.0])], [torch.from_numpy(sample.weights_W)])
    assert float(total) == -(0.5 * -1 + -3 * -2)
    assert slopes.tolist() == [-0.5, 3]


def test_tangents_that_are_all_zero_count_with_loss_zero():
    loss = Tangents(tangents=(0.0, 0.0))
    check(loss, [Sample.from_tangents([1, 2], [2, 3], loss.tangents)], is_scalar=False)
    total, (slopes,) = gradient(loss, [torch.zeros(0)], [torch.zeros(0)])
    assert float(total) == 0 and slopes.shape == (0,)


@given(st.data(), rows(LOGPROB, ADVANTAGE), CLIP)
def test_ppo(data, columns, clip):
    logprobs, advantages = columns
    trajectory = data.draw(nearby(logprobs))
    tokens = list(zip(logprobs, trajectory, advantages, strict=True))
    total, slopes = run(Ppo(trajectory_logprobs=trajectory, advantages=advantages, clip_range=clip), logprobs)
    assert total == close(sum(surrogate(*token, clip, clip) for token in tokens))
    assert slopes == close([0 if clipped(lp, t, a, clip, clip) else -a * math.exp(lp - t) for lp, t, a in tokens])


@given(st.data(), rows(LOGPROB, LOGPROB, ADVANTAGE), CLIP, BETA)
def test_grpo(data, columns, clip, beta):
    logprobs, reference, advantages = columns
    trajectory = data.draw(nearby(logprobs))
    ppo = Ppo(trajectory_logprobs=trajectory, advantages=advantages, clip_range=clip)
    total, slopes = run(Grpo(**msgspec.structs.asdict(ppo), reference_logprobs=reference, kl_beta=beta), logprobs)
    policy_total, policy_slopes = run(ppo, logprobs)
    drifts = [r - lp for r, lp in zip(reference, logprobs, strict=True)]
    assert total == close(policy_total + beta * sum(math.exp(d) - d - 1 for d in drifts))
    expected = [p + beta * (1 - math.exp(d)) for p, d in zip(policy_slopes, drifts, strict=True)]
    assert slopes == close(expected)


def test_divergence_pulls_clipped_tokens_too():
    loss = Grpo(trajectory_logprobs=(-2.0,), reference_logprobs=(-3.0,), advantages=(1.0,), clip_range=0.1, kl_beta=0.5)
    _, (slope,) = run(loss, [-1.0])
    assert slope == close(0.5 * (1 - math.exp(-2)))


@given(st.data(), rows(LOGPROB, LOGPROB), ADVANTAGE, CLIP, CLIP, BETA)
def test_gspo(data, columns, advantage, left, right, beta):
    logprobs, reference = columns
    trajectory = data.draw(nearby(logprobs))
    loss = Gspo(
        trajectory_logprobs=trajectory,
        reference_logprobs=reference,
        advantage=advantage,
        left_clip=left,
        right_clip=right,
        kl_beta=beta,
    )
    total, slopes = run(loss, logprobs)
    sequence = (float(np.mean(np.subtract(logprobs, trajectory))), 0.0, advantage, left, right)
    drifts = [r - lp for r, lp in zip(reference, logprobs, strict=True)]
    divergence = beta * sum(math.exp(d) - d - 1 for d in drifts)
    assert total == close(len(logprobs) * surrogate(*sequence) + divergence)
    policy = 0 if clipped(*sequence) else -advantage * math.exp(sequence[0])
    assert slopes == close([policy + beta * (1 - math.exp(d)) for d in drifts])


@pytest.mark.parametrize(("logprob", "moves"), [(0.09, True), (0.11, False), (-0.25, True)])
def test_the_windows_of_gspo_are_its_own(logprob, moves):
    limits = {"left_clip": 0.3, "right_clip": 0.1, "kl_beta": 0.0}
    up = Gspo(trajectory_logprobs=(0.0,), reference_logprobs=(0.0,), advantage=1.0, **limits)
    assert (run(up, [logprob])[1] != [0]) == moves
    down = msgspec.structs.replace(up, advantage=-1.0, left_clip=0.1, right_clip=0.3)
    assert (run(down, [-logprob])[1] != [0]) == moves


@given(st.lists(LOGPROB, min_size=1), st.lists(LOGPROB, min_size=1), NUMBER, NUMBER, BETA)
def test_dpo(positive, negative, reference_positive, reference_negative, beta):
    loss = Dpo(reference_positive=reference_positive, reference_negative=reference_negative, beta=beta)
    total, up, down = run(loss, positive, negative)
    z = beta * (sum(positive) - sum(negative) - (reference_positive - reference_negative))
    assert total == close(np.logaddexp(0, -z))
    tangent = beta * np.exp(-np.logaddexp(0, z))  # 1 - sigmoid, exact where it is tiny
    assert up == close([-tangent] * len(positive)) and down == close([tangent] * len(negative))


@given(NUMBER, NUMBER)
def test_ranking(positive, negative):
    total, (up,), (down,) = run(Ranking(), [positive], [negative])
    assert total == close(np.logaddexp(0, negative - positive))
    assert -up == down == close(1 / (1 + math.exp(positive - negative)))


@given(NUMBER, NUMBER)
def test_mse(score, target):
    assert run(Mse(target=target), [score]) == (close((score - target) ** 2), close([2 * (score - target)]))


@given(rows(NUMBER, NUMBER))
def test_mse_per_token(columns):
    scores, targets = map(np.array, columns)
    expected = close(float(np.sum((scores - targets) ** 2))), close((2 * (scores - targets)).tolist())
    assert run(MsePerToken(targets=columns[1]), columns[0]) == expected


@given(rows(NUMBER, NUMBER, NUMBER), st.sampled_from((0.0, 0.2, 3.0)))
def test_trust_region(columns, clip):
    scores, targets, centers = map(np.array, columns)
    total, slopes = run(TrustRegionMse(targets=columns[1], clip_centers=columns[2], clip_range=clip), columns[0])
    free, near = (scores - targets) ** 2, (centers + np.clip(scores - centers, -clip, clip) - targets) ** 2
    assert total == close(float(np.maximum(free, near).sum()))
    inside = np.abs(scores - centers) <= clip
    expected = np.where(inside | (free > near), 2 * (scores - targets), 0)
    decided = inside | ~np.isclose(free, near)
    np.testing.assert_allclose(np.array(slopes)[decided], expected[decided], rtol=1e-9, atol=1e-12)


@given(st.lists(LOGPROB, min_size=1), st.lists(LOGPROB, min_size=1), st.booleans(), BETA)
def test_the_sides_of_a_pair_can_be_trained_alone(positive, negative, ranks, beta):
    loss = Ranking() if ranks else Dpo(reference_positive=-3.0, reference_negative=-4.0, beta=beta)
    total, up, down = run(loss, positive, negative)
    first, second = pair_tangents(loss, sum(positive), sum(negative))
    alone_up, alone_down = run(first, positive), run(second, negative)
    assert alone_up[0] + alone_down[0] == close(total)
    assert (alone_up[1], alone_down[1]) == (close(up), close(down))


def test_ratios_that_are_not_used_do_not_overflow():
    far, near = (-5000.0, -5000.0, 0.0), (-1.0, -1.0, -5000.0)
    loss = Ppo(trajectory_logprobs=far, advantages=(1.0, 0.0, -1.0), clip_range=0.1)
    assert run(loss, near) == (close(-1.1 + 0.9), [0, 0, 0])
    extreme = Dpo(reference_positive=0.0, reference_negative=0.0, beta=1.0)
    assert run(extreme, [0.0], [-9000.0]) == (0, [0], [0])
    assert run(extreme, [-9000.0], [0.0]) == (9000, [-1], [1])


@pytest.mark.parametrize("advantage", [1.0, 0.0, -1.0])
def test_nan_of_the_model_shows_in_loss_and_gradient(advantage):
    loss = Ppo(trajectory_logprobs=(-1.0, -1.0), advantages=(advantage, 1.0), clip_range=0.1)
    total, slopes = run(loss, [NAN, -1.0])
    assert math.isnan(total) and math.isnan(slopes[0]) and slopes[1] == -1


def test_tiny_updates_keep_their_digits_in_fp32():
    loss = Grpo(
        trajectory_logprobs=(-1.0,), reference_logprobs=(-1.0 - 1e-6,), advantages=(0.0,), clip_range=0.1, kl_beta=1.0
    )
    total, (slopes,) = gradient(loss, [torch.tensor([-1.0])], [torch.ones(1)])
    assert total.dtype == slopes.dtype == torch.float32
    assert total.item() == pytest.approx(5e-13, rel=1e-3) and slopes.item() == pytest.approx(1e-6, rel=1e-5)


def test_the_loss_is_differentiable_and_gradients_leave_the_callers_tensors_alone():
    values = torch.tensor([-1.0, -2.0], requires_grad=True)
    evaluate(LanguageModelling(), [values], [torch.ones(2)]).backward()
    assert values.grad.tolist() == [-1, -1]
    with torch.no_grad():
        gradient(LanguageModelling(), [values], [torch.ones(2)])
    assert values.grad.tolist() == [-1, -1]


@pytest.mark.parametrize(("loss", "sides"), GOOD, ids=lambda x: type(x).__name__)
def test_each_loss_belongs_to_one_kind_of_head(loss, sides):
    check(loss, sides, is_scalar=isinstance(loss, SCORES))
    with pytest.raises(InvalidRequestError, match=r"into_scoring_model\(\)"):
        check(loss, sides, is_scalar=not isinstance(loss, SCORES))


@pytest.mark.parametrize(("loss", "sides"), GOOD, ids=lambda x: type(x).__name__)
def test_the_number_of_samples_must_be_right(loss, sides):
    wrong = sides * 2 if len(sides) == 1 else sides[:1]
    with pytest.raises(InvalidRequestError, match=f"{type(loss).__name__} got {len(wrong)} samples: give"):
        check(loss, wrong, is_scalar=isinstance(loss, SCORES))


@pytest.mark.parametrize(("loss", "sides"), GOOD, ids=lambda x: type(x).__name__)
def test_lists_must_match_the_weighted_tokens(loss, sides):
    lists = {name: getattr(loss, name) for name in loss.__struct_fields__ if isinstance(getattr(loss, name), tuple)}
    for name, values in lists.items():
        for bad, says in (
            ((*values, 1.0), rf"{name} has \d values.* for 2 weighted tokens: Vector doesn't match mask"),
            (values[:-1], "Vector doesn't match mask"),
        ):
            with pytest.raises(InvalidRequestError, match=says) as caught:
                check(msgspec.structs.replace(loss, **{name: bad}), sides, is_scalar=isinstance(loss, SCORES))
            assert caught.value.details["field"] == name


@pytest.mark.parametrize(
    ("loss", "changes", "says"),
    [
        (PPO, {"clip_range": -0.1}, "clip_range is -0.1: give 0 or more"),
        (PPO, {"clip_range": NAN}, "clip_range is nan: give a finite number"),
        (GRPO, {"kl_beta": -0.1}, "kl_beta is -0.1"),
        (GSPO, {"left_clip": -1.0}, "left_clip is -1"),
        (GSPO, {"right_clip": -1.0}, "right_clip is -1"),
        (GSPO, {"advantage": INF}, "advantage is inf"),
        (DPO, {"beta": -0.1}, "beta is -0.1"),
        (DPO, {"reference_positive": NAN}, "reference_positive is nan"),
        (DPO, {"reference_negative": -INF}, "reference_negative is -inf"),
        (TRUST, {"clip_range": -1.0}, "clip_range is -1"),
        (Mse(target=0.0), {"target": NAN}, "target is nan"),
    ],
)
def test_numbers_out_of_range(loss, changes, says):
    sides = [SAMPLE, SAMPLE] if isinstance(loss, Dpo) else [SAMPLE]
    with pytest.raises(InvalidRequestError, match=says):
        check(msgspec.structs.replace(loss, **changes), sides, is_scalar=isinstance(loss, SCORES))


@pytest.mark.parametrize("loss", [LanguageModelling(), PPO, GSPO, DPO, MsePerToken(targets=())])
def test_a_sample_without_weighted_tokens_is_refused(loss):
    nothing = Sample.from_weighted([1, 2, 3], [0, 0, 0])
    sides = [SAMPLE, nothing] if isinstance(loss, Dpo) else [nothing]
    with pytest.raises(InvalidRequestError, match=f"of 3 tokens weights none of them: {type(loss).__name__}"):
        check(loss, sides, is_scalar=isinstance(loss, SCORES))


@pytest.mark.parametrize(("loss", "sides"), GOOD, ids=lambda x: type(x).__name__)
def test_losses_mean_the_same_after_the_wire(loss, sides):
    decoded = msgspec.msgpack.decode(msgspec.msgpack.encode(loss), type=Loss)
    check(decoded, sides, is_scalar=isinstance(loss, SCORES))
    assert decoded == loss
