"""The order of samples, and starting over."""

from itertools import islice

import numpy as np
import pytest

from harmonia.client import StringThread
from harmonia.errors import InvalidRequestError
from harmonia.trainers.dataset import DataSet


def test_every_sample_comes_once_in_the_order_of_the_seed() -> None:
    dataset = DataSet("abcdefg", seed=7)
    assert list(dataset) == ["abcdefg"[index] for index in np.random.default_rng(7).permutation(7)]
    assert next(dataset, "end") == "end"
    assert dataset.completion_percentage() == 1


def test_each_epoch_of_a_loop_has_an_order_of_its_own() -> None:
    rng = np.random.default_rng(42)
    expected = [int(index) for _ in range(3) for index in rng.permutation(5)]
    dataset = DataSet(range(5), allow_looping=True)
    assert list(islice(dataset, 15)) == expected
    assert dataset.completion_percentage() == 3
    assert dataset.access_indices == expected


def test_reset_begins_anew() -> None:
    dataset = DataSet(range(9), allow_looping=True)
    first = list(islice(dataset, 20))
    dataset.reset()
    assert dataset.completion_percentage() == 0
    assert list(islice(dataset, 20)) == first


def test_another_data_set_goes_on_from_the_three_values_of_a_checkpoint() -> None:
    stopped, resumed = DataSet(range(9), allow_looping=True), DataSet(range(9), allow_looping=True, seed=1)
    list(islice(stopped, 12))
    resumed.idx, resumed.access_indices = stopped.idx, list(stopped.access_indices)
    resumed.rng.bit_generator.state = stopped.rng.bit_generator.state
    assert list(islice(resumed, 20)) == list(islice(stopped, 20))


def test_metadata_tells_when_a_sample_was_drawn() -> None:
    threads = [StringThread([("user", str(place))], metadata={}) for place in range(3)]
    drawn = islice(DataSet(threads, allow_looping=True), 7)
    assert [thread.metadata["sample_index"] for thread in drawn] == list(range(7))
    assert next(DataSet([StringThread([("user", "no metadata")])])).metadata is None


def test_an_empty_data_set_is_refused() -> None:
    with pytest.raises(InvalidRequestError, match="empty"):
        DataSet([])
