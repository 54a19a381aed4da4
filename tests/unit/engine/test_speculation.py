"""How many tokens are proposed, and what is looked up in a conversation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.engine.ngram import look_up
from harmonia.engine.runner import agreed
from harmonia.engine.speculation import Speculation

STEPS = 8


def run(acceptance: float, seconds_per_proposal: float, *, num_sequences: int = 1, num_steps: int = 3000) -> float:
    """Tokens per second against plain decoding at 1 s a step, once the choice has settled."""
    random = np.random.default_rng(0)
    speculation = Speculation(STEPS)
    tokens, seconds = 0, 0.0
    for step in range(num_steps):
        num_proposed = speculation.num_steps(num_sequences)
        took = 1 + seconds_per_proposal * num_proposed
        speculation.observe(num_sequences, num_proposed, took)
        for _ in range(num_sequences):
            wrong = np.flatnonzero(random.random(num_proposed) >= acceptance)
            num_accepted = int(wrong[0]) if len(wrong) else num_proposed
            speculation.note(num_proposed, num_accepted)
            tokens += (1 + num_accepted) * (step >= num_steps // 2)
        seconds += took * (step >= num_steps // 2)
    return tokens / num_sequences / seconds


def best(acceptance: float, seconds_per_proposal: float) -> float:
    """What always proposing the best number brings."""
    return max(
        sum(acceptance**place for place in range(steps + 1)) / (1 + seconds_per_proposal * steps)
        for steps in range(STEPS + 1)
    )


@pytest.mark.parametrize("num_sequences", [1, 32])
@pytest.mark.parametrize("cost", [0.01, 0.1, 0.5, 2.0])
@pytest.mark.parametrize("acceptance", [0.0, 0.3, 0.6, 0.9])
def test_it_proposes_about_as_many_as_pay(acceptance: float, cost: float, num_sequences: int) -> None:
    found = run(acceptance, cost, num_sequences=num_sequences)
    assert found > 0.97, "slower than plain decoding"
    assert found > 0.9 * best(acceptance, cost)


def test_it_comes_back_when_proposals_become_right_again() -> None:
    speculation = Speculation(STEPS)
    for is_right in (True, False, True):
        for _ in range(4000):
            num_proposed = speculation.num_steps(1)
            speculation.observe(1, num_proposed, 1 + 0.2 * num_proposed)
            speculation.note(num_proposed, num_proposed if is_right else 0)
        chosen = [speculation.num_steps(1) for _ in range(300)]
        assert (np.median(chosen) >= 4) == is_right


def test_nothing_is_proposed_where_nobody_has_a_draft() -> None:
    speculation = Speculation(STEPS)
    for _ in range(200):
        num_proposed = speculation.num_steps(4, share=0.0)
        speculation.observe(4, num_proposed, 1 + 0.1 * num_proposed)
    assert np.median([speculation.num_steps(4, share=0.0) for _ in range(50)]) == 0


def test_what_followed_the_latest_and_longest_match_is_proposed() -> None:
    tokens = np.array([1, 2, 3, 9, 9, 8, 2, 3, 7, 7, 1, 2, 3], dtype=np.int32)
    assert look_up(tokens, 4).tolist() == [9, 9, 8, 2]  # after 1 2 3, not after the later 2 3
    assert look_up(tokens, 1).tolist() == [9]
    assert look_up(np.array([5, 6, 5, 6, 5, 6], dtype=np.int32), 4).tolist() == [5, 6]


@pytest.mark.parametrize("tokens", [[], [1], [1, 2], [1, 2, 3, 4], [1, 9, 2, 9]])
def test_nothing_is_proposed_where_nothing_repeats(tokens: list[int]) -> None:
    assert look_up(np.array(tokens, dtype=np.int32), 4).tolist() == []


@given(st.lists(st.integers(0, 3), max_size=60), st.integers(1, 8))
def test_a_proposal_is_what_stood_behind_the_same_tokens(tokens: list[int], wanted: int) -> None:
    found = look_up(np.array(tokens, dtype=np.int32), wanted).tolist()
    assert len(found) <= wanted
    if found:
        places = [place for place in range(2, len(tokens)) if tokens[place : place + len(found)] == found]
        assert any(tokens[place - 2 : place] == tokens[-2:] for place in places)


@given(st.lists(st.integers(0, 2), min_size=1, max_size=9), st.data())
def test_tokens_count_up_to_the_first_wrong_proposal(sampled: list[int], data: st.DataObject) -> None:
    proposed = data.draw(st.lists(st.integers(0, 2), min_size=len(sampled) - 1, max_size=len(sampled) - 1))
    kept = agreed(sampled, proposed)
    assert list(kept) == sampled[: len(kept)]
    assert proposed[: len(kept) - 1] == sampled[: len(kept) - 1]
    assert len(kept) == len(sampled) or proposed[len(kept) - 1] != sampled[len(kept) - 1]
