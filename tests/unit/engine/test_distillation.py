"""Distillation through the runtime: which version teaches, what is refused, and what becomes of those who wait."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import msgspec
import numpy as np
import pytest

from harmonia.engine import memory
from harmonia.engine.requests import OptimStepRequest, SampleArrays, TrainRequest
from harmonia.errors import (
    InsufficientMemoryError,
    InvalidRequestError,
    SequenceTooLongError,
    UnavailableError,
    UnknownModelError,
)
from harmonia.protocol.losses import Distillation, LanguageModelling, Mse
from tests.unit.engine.runtime import CONFIG, Bench, Reply, sample
from tests.unit.models.tiny import VOCAB, reference_model

RANDOM = np.random.default_rng(12)
SAMPLES = [sample(RANDOM.integers(1, VOCAB, length).tolist()) for length in (9, 30, 4, 17, 25, 12, 50, 3)]
FROM_TEACHER = Distillation(teacher="teacher")

Model = Callable[..., str]


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    """The path of a tiny model of a family: `model("qwen3", vocab_size=90)`."""
    folders: dict[str, Path] = {}

    def make(family: str = "llama", **settings: int) -> str:
        name = f"{family}{settings}"
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(family)
            reference_model(family, **settings).save_pretrained(folders[name])
        return str(folders[name])

    return make


@pytest.fixture
def bench() -> Bench:
    return Bench()


def begin_step(bench: Bench, name: str, **settings: float) -> Reply:
    """An optimizer step that is queued, not waited for."""
    reply = Reply()
    bench.runtime.optim_step(OptimStepRequest(instance=name, **{"lr": 1e-2, **settings}), reply)
    return reply


def loss_of(bench: Bench, name: str, loss: Distillation = FROM_TEACHER) -> float:
    """The distance from the teacher as it is, without learning."""
    bench.train(name, SAMPLES, loss)
    return float(bench.optim_step(name, lr=0.0)["metrics"]["loss"])


@pytest.mark.parametrize("rank", [4, 0])
def test_a_student_comes_to_agree_with_its_teacher(bench: Bench, model: Model, rank: int) -> None:
    bench.spawn("teacher", model("qwen3"))
    bench.spawn("student", model("llama"), rank=rank, max_batch_size=64)
    told = []
    for _ in range(15):
        bench.train("student", SAMPLES, FROM_TEACHER)
        told.append(bench.optim_step("student", lr=5e-3)["metrics"])
    for name in ("agreement", "overlap"):
        assert all(0 <= metrics[name] <= 1 for metrics in told)
        assert told[-1][name] > told[0][name] + 0.2
    assert told[-1]["loss"] < told[0]["loss"] / 2


def test_only_what_was_distilled_is_told(bench: Bench, model: Model) -> None:
    bench.spawn("teacher", model("qwen3"))
    bench.spawn("student", model("llama"), rank=4)
    bench.train("student", SAMPLES)
    assert not {"agreement", "overlap"} & bench.optim_step("student", lr=0.0)["metrics"].keys()
    bench.train("student", SAMPLES[:3], FROM_TEACHER)
    alone = bench.optim_step("student", lr=0.0)["metrics"]
    bench.wait(
        *bench.begin_training("student", SAMPLES[:3], FROM_TEACHER), *bench.begin_training("student", SAMPLES[3:])
    )
    mixed = bench.optim_step("student", lr=0.0)["metrics"]
    assert mixed["num_samples"] == len(SAMPLES)
    assert [mixed[name] for name in ("agreement", "overlap")] == pytest.approx(
        [alone[name] for name in ("agreement", "overlap")], rel=1e-5
    )


@pytest.mark.parametrize("rank", [4, 0])
def test_a_teacher_in_training_teaches_with_what_it_had_learned_when_it_was_asked(model: Model, rank: int) -> None:
    def make() -> Bench:
        bench = Bench()
        bench.spawn("teacher", model("llama"), rank=rank, max_batch_size=64)
        bench.spawn("student", model("qwen3"), rank=4)
        return bench

    one_by_one, at_once = make(), make()
    by_version = []
    for _ in range(3):
        by_version.append(loss_of(one_by_one, "student"))
        one_by_one.train("teacher", SAMPLES[:4])
        one_by_one.optim_step("teacher", lr=1e-2)
    assert len({round(loss, 2) for loss in by_version}) == 3

    replies = []
    for _ in range(2):
        replies += at_once.begin_training("teacher", SAMPLES[:4])
        replies.append(begin_step(at_once, "teacher"))
        if len(replies) == 5:
            replies += at_once.begin_training("student", SAMPLES, FROM_TEACHER)
            told = begin_step(at_once, "student", lr=0.0)
    at_once.wait(*replies)
    assert at_once.wait(told)[0]["metrics"]["loss"] == pytest.approx(by_version[1], rel=1e-5)


def test_two_that_teach_each_other_come_to_an_end(bench: Bench, model: Model) -> None:
    bench.spawn("a", model("llama"), rank=4)
    bench.spawn("b", model("qwen3"), max_batch_size=64)
    replies = []
    for _ in range(4):
        for name, teacher in (("a", "b"), ("b", "a")):
            replies += bench.begin_training(name, SAMPLES[:3], Distillation(teacher=teacher))
            replies.append(begin_step(bench, name, lr=5e-3))
    steps = [value["metrics"] for value in bench.wait(*replies) if "metrics" in value]
    assert len(steps) == 8
    assert steps[-1]["overlap"] > steps[0]["overlap"]


def test_an_answer_is_the_same_beside_distillation(bench: Bench, model: Model) -> None:
    bench.spawn("teacher", model("qwen3"))
    bench.spawn("student", model("llama"), rank=4)
    prompts = [[5, 9, 2, 7], [1, 2, 3]]
    alone = [bench.generate("teacher", prompt, 40) for prompt in prompts]
    seq_ids = [bench.begin("teacher", prompt, 40) for prompt in prompts]
    bench.train("student", SAMPLES, FROM_TEACHER)
    bench.drain()
    assert [bench.tokens(seq_id) for seq_id in seq_ids] == alone


def test_a_teacher_answers_while_its_update_waits_for_its_students(bench: Bench, model: Model) -> None:
    bench.spawn("teacher", model("llama"), max_batch_size=64)
    bench.spawn("student", model("qwen3"), rank=4)
    lessons = bench.begin_training("student", SAMPLES * 5, FROM_TEACHER)
    trained = bench.begin_training("teacher", SAMPLES[:1])
    bench.wait(*trained)
    step = begin_step(bench, "teacher")
    seq_id = bench.begin("teacher", [5, 9, 2, 7], 3)
    while len(bench.outputs.get(seq_id, ())) < 3:
        bench.step()
    assert not step.is_there
    assert not all(reply.is_there for reply in lessons)
    assert bench.versions(seq_id) == {0}
    bench.wait(*lessons, step)


def test_calls_fail_when_their_teacher_is_freed_and_others_go_on(bench: Bench, model: Model) -> None:
    bench.spawn("teacher", model("qwen3"))
    bench.spawn("other", model("qwen3"), rank=2)
    bench.spawn("student", model("llama"), rank=4)
    bench.train("student", SAMPLES[:2], FROM_TEACHER)
    waiting = bench.begin_training("student", SAMPLES, FROM_TEACHER)
    others = bench.begin_training("student", SAMPLES[:3], Distillation(teacher="other"))
    for _ in range(3):
        bench.step()
    bench.runtime.dealloc("teacher")
    assert all(reply.is_there for reply in waiting), "what was read is done, and the others are told"
    errors = [reply.error for reply in waiting if reply.error]
    assert errors
    assert all(isinstance(error, UnavailableError) and "'teacher' was deallocated" in str(error) for error in errors)
    bench.wait(*others)
    done = 2 + len(waiting) - len(errors) + len(others)
    assert bench.optim_step("student")["metrics"]["num_samples"] == done
    with pytest.raises(UnknownModelError, match="'teacher'"):
        bench.begin_training("student", SAMPLES[:1], FROM_TEACHER)


def test_a_student_that_is_freed_does_not_hold_up_its_teacher(bench: Bench, model: Model) -> None:
    bench.spawn("teacher", model("llama"), rank=4)
    bench.spawn("student", model("qwen3"), rank=4)
    waiting = bench.begin_training("student", SAMPLES, FROM_TEACHER)
    trained = bench.begin_training("teacher", SAMPLES[:2])
    step = begin_step(bench, "teacher")
    bench.runtime.dealloc("student")
    bench.wait(*trained, step)
    assert all(reply.is_there for reply in waiting)
    assert step.value is not None
    assert step.value["optim_step"] == 1


def test_bad_lessons_are_refused_and_change_nothing(bench: Bench, model: Model) -> None:
    short, small = model("qwen2", max_position_embeddings=16), model("qwen3", vocab_size=50)
    for name, path in (("teacher", model("qwen3")), ("short", short), ("small", small)):
        bench.spawn(name, path)
    bench.spawn("student", model("llama"), rank=4)
    bench.spawn("scores", model("llama"), rank=4, scalar_head=True)
    good = bench.begin_training("student", SAMPLES[:1], FROM_TEACHER)
    in_small = sample([1, 2, 49, 3])

    def learn(name: str, teacher: str, entry: SampleArrays = SAMPLES[1], *more: SampleArrays) -> Callable[[], object]:
        request = TrainRequest(instance=name, sides=(entry, *more), loss=Distillation(teacher=teacher))
        return lambda: bench.runtime.train(request, Reply())

    for call, error, says in [
        (learn("student", "nobody"), UnknownModelError, "'nobody'.*'teacher'"),
        (learn("student", "student"), InvalidRequestError, "its own teacher.*clone_inf"),
        (learn("student", "scores"), InvalidRequestError, "scoring model.*into_scoring_model"),
        (learn("scores", "teacher"), InvalidRequestError, "into_scoring_model"),
        (learn("teacher", "student"), InvalidRequestError, "spawn_train"),
        (learn("student", "short"), SequenceTooLongError, "30 tokens.*'short' knows 16"),
        (learn("student", "small", sample([1, 2, 50, 3])), InvalidRequestError, "token id 50.*vocabulary of 50"),
        (learn("student", "teacher", sample([1, 2, 3], [0, 0, 0])), InvalidRequestError, "weights none of them"),
        (learn("student", "teacher", SAMPLES[0], SAMPLES[1]), InvalidRequestError, "2 samples"),
        (learn("student", "teacher", sample([1] * 65)), SequenceTooLongError, "max_batch_size"),
    ]:
        with pytest.raises(error, match=says):
            call()
    bench.wait(*good, *bench.begin_training("student", [in_small], Distillation(teacher="small")))
    assert bench.optim_step("student")["metrics"]["num_samples"] == 2
    bench.train("scores", SAMPLES[:1], Mse(target=1.0))
    bench.train("student", SAMPLES[:1], LanguageModelling())


def test_memory_for_a_teacher_is_taken_when_it_is_asked_for(model: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    tokens, width = 16_384, 512  # planned for, never used
    large = model("qwen3", hidden_size=width, intermediate_size=4 * width)

    def made() -> Bench:
        bench = Bench(msgspec.structs.replace(CONFIG, memory_fraction=1.0))
        bench.spawn("student", model("llama"), rank=4, max_batch_size=tokens)
        bench.spawn("teacher", large)
        return bench

    def promised(bench: Bench) -> int:
        """To the first backbone, which is the student's until that is freed; libraries left out."""
        rows = bench.runtime.describe().plan["rows"]
        return sum(row["num_bytes"] for row in rows if row["name"] != "runtime")  # type: ignore[attr-defined]

    monkeypatch.setattr(memory, "free_bytes", lambda _: 16 << 30)
    roomy = made()
    before = promised(roomy)
    roomy.train("student", SAMPLES[:1], FROM_TEACHER)
    reserved = promised(roomy)
    assert reserved - before >= 2 * tokens * width * 4, "the states of a full micro-batch, and the sum between layers"
    roomy.train("student", SAMPLES[1:], FROM_TEACHER)
    assert promised(roomy) == reserved

    libraries = roomy.runtime.describe().plan["total_bytes"] - reserved  # type: ignore[operator]
    roomy.runtime.dealloc("student")
    available = before + promised(roomy) + libraries + (64 << 20)  # which reading the teacher's weights takes
    monkeypatch.setattr(memory, "free_bytes", lambda _: available)
    tight = made()
    with pytest.raises(InvalidRequestError, match="weights none of them"):
        tight.train("student", [sample([1, 2, 3], [0, 0, 0])], FROM_TEACHER)
    with pytest.raises(InsufficientMemoryError, match=r"max_batch_size \d+ fits"):
        tight.train("student", SAMPLES[:1], FROM_TEACHER)
    assert promised(tight) == before
    tight.train("student", SAMPLES)
    assert tight.optim_step("student")["metrics"]["num_samples"] == len(SAMPLES)
