"""What clients send as samples, and what the device is asked for."""

import numpy as np
import pytest

from harmonia.errors import InvalidRequestError
from harmonia.protocol.instances import SampleData, TargetSample, TokenSample
from harmonia.protocol.threads import Text, ThreadData, ThreadTurn, TokenThreadData, TokenTurn
from harmonia.worker.samples import Sample, read_sample
from harmonia.worker.threads import ThreadTokenizer
from tests.unit.worker.tiny_tokenizer import VOCAB_SIZE, byte_tokenizer

TEMPLATE = (
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}\n{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% endif %}"
)
THREADS = ThreadTokenizer(byte_tokenizer(TEMPLATE))


def read(data: SampleData) -> Sample:
    return read_sample(data, THREADS, VOCAB_SIZE)


def rows_and_targets(sample: Sample, what: str) -> tuple[list[int], list[int], int]:
    request, count = sample.score(what)
    return np.frombuffer(request.rows, "<i4").tolist(), np.frombuffer(request.targets, "<i4").tolist(), count


def test_a_token_is_judged_by_the_state_before_it() -> None:
    sample = read(TokenSample(token_ids=(5, 6, 7, 8), weights=(0.0, 1.0, 0.0, -0.5)))
    assert rows_and_targets(sample, "logprobs") == ([0, 2], [6, 8], 2)
    assert rows_and_targets(sample, "scores") == ([0, 2], [], 2)
    assert rows_and_targets(sample, "last_score") == ([3], [], 1)
    arrays = sample.arrays()
    assert np.frombuffer(arrays.weights, "<f4").tolist() == [0.0, 1.0, 0.0, -0.5]
    assert np.frombuffer(arrays.token_ids, "<i4").tolist() == [5, 6, 7, 8]


def test_targets_are_read_where_they_stand() -> None:
    sample = read(TargetSample(token_ids=(5, 6), targets=(6, 7)))
    assert rows_and_targets(sample, "logprobs") == ([0, 1], [6, 7], 2)
    assert (sample.arrays().weights, np.frombuffer(sample.arrays().targets, "<i4").tolist()) == (b"", [6, 7])


def test_nothing_weighted_wants_no_value() -> None:
    sample = read(TokenSample(token_ids=(5, 6), weights=(0.0, 0.0)))
    assert rows_and_targets(sample, "logprobs") == ([1], [5], 0)


def test_threads_carry_the_weights_of_their_turns() -> None:
    turns = (
        ThreadTurn(role="user", content=(Text(text="ab"),), weight=0.0),
        ThreadTurn(role="assistant", content=(Text(text="cd"),), weight=1.0, flavor="Normalized"),
    )
    text = read(ThreadData(turns=turns))
    assert text.weights is not None and text.weights[text.weights != 0].tolist() == [0.5, 0.5]
    tokens = read(THREADS.tokenize(ThreadData(turns=turns)))
    assert (tokens.arrays(), text.arrays()) == (text.arrays(), tokens.arrays())


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (TokenSample(token_ids=(), weights=()), "token_ids is empty"),
        (TokenSample(token_ids=(1, 2), weights=(0.0,)), "1 values for 2 tokens"),
        (TokenSample(token_ids=(1, VOCAB_SIZE), weights=(0.0, 1.0)), f"got {VOCAB_SIZE}"),
        (TokenSample(token_ids=(1, 2**63), weights=(0.0, 1.0)), "token_ids must hold"),
        (TokenSample(token_ids=(1, 2), weights=(0.0, float("inf"))), r"weights\[1\] is inf"),
        (TokenSample(token_ids=(1, 2), weights=(0.0, 1e300)), r"weights\[1\]"),
        (TargetSample(token_ids=(1, 2), targets=(1,)), "targets has 1 values"),
        (TargetSample(token_ids=(1, 2), targets=(1, -1)), "got -1"),
        (TokenThreadData(token_ids=(1,), turns=(TokenTurn(role="user", start=0, stop=2, weight=1.0),)), "turn 0"),
    ],
)
def test_what_is_wrong_is_named(data: SampleData, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        read(data)


def test_the_first_token_cannot_be_scored() -> None:
    with pytest.raises(InvalidRequestError, match="position 0"):
        read(TokenSample(token_ids=(1, 2), weights=(1.0, 0.0))).score("logprobs")
