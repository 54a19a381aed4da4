"""What a sample reads: rows, targets and weights, and which inputs are refused."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.errors import InvalidRequestError
from harmonia.train.samples import Sample

WEIGHTED = st.lists(st.tuples(st.integers(0, 50_000), st.sampled_from((0.0, 1.0, 0.5, -2.0))), min_size=1, max_size=30)


def test_weighted_tokens_are_read_one_row_earlier():
    sample = Sample.from_weighted([10, 11, 12, 13, 14, 15], [0, 0, 1, 0.5, 0, 0])
    assert sample.rows_W.tolist() == [1, 2]
    assert sample.targets_W.tolist() == [12, 13]
    assert sample.weights_W.tolist() == [1, 0.5]


def test_tokens_after_the_last_row_do_not_pass_through_the_model():
    sample = Sample.from_weighted([10, 11, 12, 13, 14, 15], [0, 0, 1, 0.5, 0, 0])
    assert sample.token_ids_T.tolist() == [10, 11, 12]
    assert sample.num_tokens == 6


@given(WEIGHTED)
def test_every_weighted_token_is_the_target_of_the_row_before_it(pairs):
    token_ids, weights = [7, *(token for token, _ in pairs)], [0.0, *(weight for _, weight in pairs)]
    sample = Sample.from_weighted(token_ids, weights)
    expected = [(i - 1, token_ids[i], weights[i]) for i in range(len(weights)) if weights[i] != 0]
    assert list(zip(sample.rows_W, sample.targets_W, sample.weights_W, strict=True)) == expected
    assert sample.token_ids_T.tolist() == token_ids[: expected[-1][0] + 1 if expected else 0]


@given(WEIGHTED)
def test_tangents_of_shifted_tokens_read_what_weights_read(pairs):
    token_ids, weights = [7, *(token for token, _ in pairs)], [0.0, *(weight for _, weight in pairs)]
    by_weight = Sample.from_weighted(token_ids, weights)
    by_tangent = Sample.from_tangents(token_ids[:-1], token_ids[1:], weights[1:])
    for field in ("token_ids_T", "rows_W", "targets_W", "weights_W"):
        np.testing.assert_array_equal(getattr(by_tangent, field), getattr(by_weight, field), strict=True)


def test_the_last_token_is_read_at_its_own_row():
    sample = Sample.last_token([5, 6, 7])
    assert sample.token_ids_T.tolist() == [5, 6, 7] and sample.rows_W.tolist() == [2]
    assert len(sample.targets_W) == len(sample.weights_W) == 1


def test_tangents_that_are_all_zero_leave_nothing_to_run():
    sample = Sample.from_tangents([1, 2], [2, 3], [0.0, -0.0])
    assert len(sample.token_ids_T) == len(sample.rows_W) == 0
    assert sample.num_tokens == 2


def test_a_weight_too_small_for_fp32_still_chooses_its_token():
    assert Sample.from_weighted([1, 2, 3], [0, 1e-60, 1]).rows_W.tolist() == [0, 1]


def test_dtypes_are_the_same_for_lists_and_arrays():
    weights = [np.float32(0), np.float32(1)]
    for sample in (
        Sample.from_weighted([1, 2], weights),
        Sample.from_weighted(np.array([1, 2], np.uint16), np.array(weights)),
        Sample.last_token((1, 2)),
        Sample.from_tangents([1], [2], [0]),
    ):
        assert sample.token_ids_T.dtype == sample.rows_W.dtype == sample.targets_W.dtype == np.int64
        assert sample.weights_W.dtype == np.float32


def test_later_changes_of_the_callers_array_are_not_seen():
    token_ids = np.array([1, 2, 3])
    samples = [Sample.last_token(token_ids), Sample.from_weighted(token_ids, [0, 0, 1])]
    token_ids[:] = 9
    assert [sample.token_ids_T.tolist() for sample in samples] == [[1, 2, 3], [1, 2]]
    assert [sample.targets_W.tolist() for sample in samples] == [[3], [3]]


@pytest.mark.parametrize(
    ("token_ids", "weights", "says"),
    [
        ([1, 2], [1, 1], r"weights\[0\] is 1, .* set its weight to 0"),
        ([1, 2, 3], [0, 1], "2 values for 3 tokens"),
        ([], [], "token_ids is empty"),
        ([1, 2], [0, float("nan")], r"weights\[1\] is nan"),
        ([1, 2], [0, float("inf")], r"weights\[1\] is inf"),
        ([1, 2], [0, 1e39], r"weights\[1\] is 1e\+39"),
        ([1, 2], [0, "high"], "weights is no list of numbers.*high"),
        ([1, 2], [[0], [1]], "weights has 2 dimensions"),
        ([1, -2], [0, 1], r"token_ids\[1\] is -2"),
        ([1, 2.5], [0, 1], "token_ids holds float64"),
        ([[1], [2]], [0, 1], "token_ids holds int64 in 2 dimensions"),
        ([[1], [2, 3]], [0, 1], "not a flat list of token ids"),
        ([1, 2**64], [0, 1], "token_ids holds object"),
    ],
)
def test_bad_weighted_samples(token_ids, weights, says):
    with pytest.raises(InvalidRequestError, match=says) as caught:
        Sample.from_weighted(token_ids, weights)
    assert caught.value.details["field"] in ("token_ids", "weights")


@pytest.mark.parametrize(
    ("inputs", "targets", "tangents", "says"),
    [
        ([1, 2], [2], [1, 1], "lengths 2, 1 and 2"),
        ([1, 2], [2, 3], [1], "lengths 2, 2 and 1"),
        ([], [], [], "inputs is empty"),
        ([1], [-2], [1], r"targets\[0\] is -2"),
    ],
)
def test_bad_tangents(inputs, targets, tangents, says):
    with pytest.raises(InvalidRequestError, match=says):
        Sample.from_tangents(inputs, targets, tangents)


def test_no_last_token():
    with pytest.raises(InvalidRequestError, match="token_ids is empty"):
        Sample.last_token([])
