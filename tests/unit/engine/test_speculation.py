"""How many tokens are proposed, and what is looked up in a conversation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from harmonia.engine.ngram import look_up
from harmonia.engine.runner import agreed
from harmonia.engine.speculation import Choice, Speculation

STEPS = 8


def run(
    acceptance: float,
    seconds_per_proposal: float,
    *,
    num_sequences: int = 1,
    num_steps: int = 3000,
    first: int = 1500,
    most: int = STEPS,
) -> float:
    """Tokens per second against plain decoding at 1 s a step, from a certain step on: the choice has settled."""
    random = np.random.default_rng(0)
    speculation = Speculation(STEPS)
    all_tokens, all_seconds = 0, 0.0
    for step in range(num_steps):
        choice = speculation.choose(num_sequences, most=most)
        seconds, tokens = 1 + seconds_per_proposal * choice.num_steps, num_sequences
        for _ in range(num_sequences):
            wrong = np.flatnonzero(random.random(choice.num_steps) >= acceptance)
            num_accepted = int(wrong[0]) if len(wrong) else choice.num_steps
            speculation.note(choice.num_steps, num_accepted)
            tokens += num_accepted
        speculation.observe(choice, seconds, tokens / num_sequences)
        all_tokens += tokens * (step >= first)
        all_seconds += seconds * (step >= first)
    return all_tokens / num_sequences / all_seconds


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


@pytest.mark.parametrize("num_sequences", [1, 4, 16, 64])
@pytest.mark.parametrize("cost", [0.1, 0.3, 0.6])
@pytest.mark.parametrize("acceptance", [0.0, 0.2, 0.4])
def test_the_first_tokens_do_not_pay_for_what_is_learnt(acceptance: float, cost: float, num_sequences: int) -> None:
    found = run(acceptance, cost, num_sequences=num_sequences, num_steps=250, first=0, most=4)
    assert found > 0.965, "slower than plain decoding"


@pytest.mark.parametrize("seed", range(3))
def test_a_step_that_something_held_up_does_not_make_it_propose_less(seed: int) -> None:
    """Four bring 3 % more than three here: as little as a mean is soon wrong by."""
    random = np.random.default_rng(seed)
    speculation = Speculation(STEPS)
    chosen = []
    for _ in range(4000):
        choice = speculation.choose(1, most=4)
        num_steps = choice.num_steps
        wrong = np.flatnonzero(random.random(num_steps) >= 0.8)
        num_right = int(wrong[0]) if len(wrong) else num_steps
        speculation.note(num_steps, num_right)
        seconds = (1 + (num_steps > 0) * 0.16 + 0.19 * num_steps) * random.uniform(0.97, 1.03)
        speculation.observe(choice, seconds * (5 if random.random() < 0.02 else 1), 1 + num_right)
        chosen.append(num_steps)
    assert np.mean(np.array(chosen[500:]) == 4) > 0.6


def steps(
    speculation: Speculation, count: int, *, is_right: bool, cost: float = 0.2, num_sequences: int = 1
) -> list[int]:
    """Proposals of so many steps, of which all or none are right; each costs so much more than a step without."""
    chosen = []
    for _ in range(count):
        choice = speculation.choose(num_sequences)
        num_right = choice.num_steps if is_right else 0
        speculation.note(choice.num_steps, num_right)
        speculation.observe(choice, 1 + cost * choice.num_steps, 1 + num_right)
        chosen.append(choice.num_steps)
    return chosen


def test_it_comes_back_when_proposals_become_right_again() -> None:
    speculation = Speculation(STEPS)
    for is_right in (True, False, True):
        steps(speculation, 4000, is_right=is_right)
        chosen = steps(speculation, 300, is_right=is_right)
        assert (np.median(chosen) >= 4) == is_right


def test_a_few_and_none_are_tried_before_anything_is_decided() -> None:
    for is_right in (False, True):
        assert steps(Speculation(STEPS), 5, is_right=is_right) == [4, 4, 0, 0, 0]
        assert steps(Speculation(STEPS), 5, is_right=is_right, num_sequences=64) == [1, 1, 0, 0, 0]
        assert steps(Speculation(2), 5, is_right=is_right) == [2, 2, 0, 0, 0]


def test_another_number_of_sequences_begins_as_its_neighbour_does() -> None:
    for is_right in (False, True):
        speculation = Speculation(STEPS)
        steps(speculation, 100, is_right=is_right, num_sequences=8)
        chosen = steps(speculation, 6, is_right=is_right, num_sequences=6)
        assert (chosen[0] > 0) == is_right
        assert chosen.count(0) == (3 if is_right else 6)


def test_what_a_draft_had_to_catch_up_with_puts_off_the_next_trial() -> None:
    """A step with proposals costs little more, but the one before which the draft reads what it stayed behind."""
    speculation = Speculation(STEPS)
    lost, behind = 0.0, 0
    for _ in range(20_000):
        choice = speculation.choose(4, most=4)
        seconds = 1 + 0.1 * choice.num_steps + 0.002 * behind * (choice.num_steps > 0)
        speculation.note(choice.num_steps, 0)
        speculation.observe(choice, seconds, 1, is_typical=not (choice.num_steps and behind > 8))
        behind = 0 if choice.num_steps else min(behind + 4, 512)
        lost += seconds - 1
    assert 0 < lost < 0.02 * 20_000


def test_a_step_that_was_on_its_way_is_no_part_of_a_trial() -> None:
    speculation = Speculation(STEPS)
    steps(speculation, 400, is_right=False)
    while (choice := speculation.choose(1)).num_steps == 0:
        speculation.observe(choice, 1.0, 1)
    for _ in range(3):
        speculation.observe(Choice(1, 0), 1.0, 1)
    assert speculation.choose(1).num_steps > 0


def test_nothing_is_taken_up_that_was_never_measured() -> None:
    speculation = Speculation(STEPS)
    for _ in range(100):
        speculation.choose(1)
    assert not any(steps(speculation, 15, is_right=True))


def test_trials_cost_a_hundredth_of_the_time() -> None:
    speculation = Speculation(STEPS)
    steps(speculation, 100, is_right=False, cost=2.0)
    chosen = np.array(steps(speculation, 20_000, is_right=False, cost=2.0))
    assert 0 < (2.0 * chosen).sum() < 0.011 * len(chosen)


def test_a_trial_is_not_in_earnest_where_nothing_is_proposed() -> None:
    speculation = Speculation(STEPS)
    steps(speculation, 30, is_right=False)
    choices = []
    for _ in range(2000):
        choices.append(choice := speculation.choose(1))
        speculation.note(choice.num_steps, 0)
        speculation.observe(choice, 1 + choice.num_steps, 1)
    assert {choice.in_earnest for choice in choices if choice.num_steps} == {False}


def test_what_held_up_single_steps_does_not_stop_proposals() -> None:
    speculation = Speculation(STEPS)
    steps(speculation, 100, is_right=True)
    for _ in range(20):
        speculation.observe(speculation.choose(1), 100.0, 5)
        chosen = steps(speculation, 40, is_right=True)
    assert np.median(chosen) >= 4


def test_steps_that_are_not_typical_do_not_tell_what_typical_ones_cost() -> None:
    speculation = Speculation(STEPS)
    for index in range(400):
        choice = speculation.choose(1)
        speculation.note(choice.num_steps, choice.num_steps)
        is_typical = index % 2 == 0
        speculation.observe(
            choice, 1 + 0.2 * choice.num_steps * (1 if is_typical else 50), 1 + choice.num_steps, is_typical=is_typical
        )
    assert np.median(steps(speculation, 50, is_right=True)) >= 4


def test_no_more_is_proposed_than_there_is_room_for() -> None:
    speculation = Speculation(STEPS)
    assert max(steps(speculation, 300, is_right=True)) > 3
    assert max(speculation.choose(1, most=3).num_steps for _ in range(200)) == 3
    assert speculation.choose(1, most=0).num_steps == 0


def test_a_trial_ends_where_none_of_its_steps_is_measured() -> None:
    """Where prompts come all the time, no step is one of decodes only."""
    speculation = Speculation(STEPS)
    steps(speculation, 400, is_right=False)
    while (choice := speculation.choose(1)).num_steps == 0:
        speculation.observe(choice, 1.0, 1)
    chosen = [speculation.choose(1).num_steps for _ in range(200)]
    assert any(chosen[:20]) and not any(chosen[50:])


def test_nothing_is_proposed_where_nobody_has_a_draft() -> None:
    speculation = Speculation(STEPS)
    assert not any(speculation.choose(4, share=0.0).num_steps for _ in range(200))


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
