"""A request may want fewer proposals than its model was spawned for, or none; the answer is the same."""

from __future__ import annotations

import time
from pathlib import Path

import pytest

from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.engine.speculation import Choice, Speculation
from harmonia.protocol.sampling import SamplingParams
from tests.unit.engine.runtime import Bench
from tests.unit.models.tiny import VOCAB, reference_model

PROMPT = [3, 5, 8, 13, 21] * 4


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> str:
    path: Path = tmp_path_factory.mktemp("models") / "target"
    reference_model("llama").save_pretrained(path)
    return str(path)


@pytest.fixture(autouse=True)
def as_many_as_may_be(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether proposals pay is not measured here."""
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, max(0, most)))


def request(wanted: int | None, *, always_draft: bool = False, constrained: bool = False) -> SequenceRequest:
    return SequenceRequest(
        seq_id=1,
        model="model",
        token_ids=pack_ids(tuple(PROMPT)),
        sampling=SamplingParams(max_tokens=24, temperature=0.0, ignore_eos=True),
        arrival_s=time.monotonic(),
        num_draft_steps=wanted,
        always_draft=always_draft,
        constrained=constrained,
    )


def asked(folder: str, wanted: int | None, *, always_draft: bool = False) -> tuple[list[int], list[int]]:
    """The answer, and how many tokens were proposed in each step. The draft is the model itself: always right."""
    bench = Bench()
    bench.spawn("model", folder, draft=folder, num_draft_steps=4)
    bench.runtime.add(request(wanted, always_draft=always_draft))
    bench.drain()
    return bench.tokens(1), [output.num_drafted for output in bench.outputs[1]]


def guided(folder: str, wanted: int | None, right: list[int], *, wrong_from: int, wait_s: float = 0.0) -> Bench:
    """An answer under a grammar that allows everything, whose keeper knows what comes, up to a place in each step.

    wait_s: how long its masks take.
    """
    bench = Bench()
    bench.spawn("model", folder, draft=folder, num_draft_steps=4)
    bench.runtime.add(request(wanted, constrained=True))
    mask, num_wanted = b"\xff" * (VOCAB // 8), 0
    while bench.runtime.has_work:
        known = len(bench.tokens(1)) if 1 in bench.outputs else 0
        given = [(token + (place >= wrong_from)) % VOCAB for place, token in enumerate(right[known:][:num_wanted])]
        bench.runtime.provide_mask(1, known, mask * (1 + len(given)), pack_ids(given))
        bench.step()
        num_known = len(bench.tokens(1))
        bench.step()
        assert len(bench.tokens(1)) == num_known > known, "one step with masks, none without"
        time.sleep(wait_s)
        num_wanted = bench.outputs[1][-1].num_wanted
    return bench


@pytest.mark.parametrize("wrong_from", [0, 2, 9])
def test_whoever_holds_the_grammar_is_asked_for_as_many(folder: str, wrong_from: int) -> None:
    plain, _ = asked(folder, 0)
    for wanted, most in ((0, 0), (1, 1), (3, 3), (None, 4), (8, 4)):
        bench = guided(folder, wanted, plain, wrong_from=wrong_from)
        assert bench.tokens(1) == plain
        assert max(output.num_wanted for output in bench.outputs[1]) == most
        assert max(output.num_drafted for output in bench.outputs[1]) == most
        assert max(output.num_accepted for output in bench.outputs[1]) == min(most, wrong_from)


def test_waiting_for_masks_is_part_of_a_step(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """So that the chooser sees what proposals save, and what they take to make."""
    seconds = list[float]()
    monkeypatch.setattr(Speculation, "observe", lambda self, choice, took_s, *rest, **_: seconds.append(took_s))
    plain, _ = asked(folder, 0)
    seconds.clear()
    guided(folder, None, plain, wrong_from=9, wait_s=0.05)
    assert len(seconds) >= 3
    assert min(seconds) > 0.05


def test_steps_without_those_who_wait_say_nothing_of_proposals(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """While masks are made, others go on: that such a step is cheap is no merit of what was to be proposed."""
    seen = list[tuple[int, bool]]()

    def observe(self: Speculation, choice: Choice, seconds: float, tokens: float, *, is_typical: bool) -> None:
        seen.append((choice.num_steps, is_typical))

    monkeypatch.setattr(Speculation, "observe", observe)
    bench = Bench()
    bench.spawn("model", folder, draft="ngram", num_draft_steps=4)
    bench.spawn("bare", folder)
    waiting = SequenceRequest(seq_id=99, model="model", token_ids=pack_ids(tuple(PROMPT)), constrained=True)
    bench.runtime.add(waiting)
    answer = bench.begin("bare", PROMPT, 12)
    while answer not in bench.outputs or bench.outputs[answer][-1].finish_reason is None:
        bench.step()
    assert (4, False) in seen
    assert (4, True) not in seen


def test_a_request_says_how_many_tokens_are_proposed(folder: str) -> None:
    plain, nothing = asked(folder, 0)
    assert set(nothing) == {0}
    for wanted, most in ((1, 1), (3, 3), (None, 4), (8, 4)):
        answer, proposed = asked(folder, wanted)
        assert answer == plain
        assert max(proposed) == most


def test_a_request_may_insist_on_proposals(folder: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where none would pay."""
    monkeypatch.setattr(Speculation, "choose", lambda self, count, share, most: Choice(count, 0))
    plain, nothing = asked(folder, None)
    answer, proposed = asked(folder, None, always_draft=True)
    assert answer == plain
    assert set(nothing) == {0}
    assert proposed[1:-1] and set(proposed[1:-1]) == {4}
