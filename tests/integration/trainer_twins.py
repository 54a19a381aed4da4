"""One adapter twice: in the engine, and in PEFT where the reference trains it."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import pytest
from safetensors.torch import load_file
from torch import Tensor

from harmonia.client import StringThread, TrainingModel
from tests.integration.trainer_reference import Record, Reference, Text
from tests.unit.trainers.recorders import Records

Pair = tuple[StringThread, StringThread]
Weights = dict[str, Tensor]


@dataclass
class Twins:
    """One adapter in the engine and the same in PEFT."""

    engine: TrainingModel
    base: Path
    registry: Path
    scores: bool
    logger: Records = field(default_factory=Records)

    def at_start(self) -> Reference:
        """PEFT's model where both begin."""
        return Reference(self.base, self.registry / "start", scores=self.scores)

    async def text(self, thread: StringThread) -> Text:
        ids, _, weights = await self.engine.serialize_thread(thread)
        return Text(ids, weights)

    async def texts(self, threads: Sequence[StringThread]) -> list[Text]:
        return [await self.text(thread) for thread in threads]

    async def pairs(self, pairs: Sequence[Pair]) -> list[tuple[Text, Text]]:
        return [(await self.text(first), await self.text(second)) for first, second in pairs]

    async def assert_same(self, expected: list[Record], reference: Reference) -> None:
        """The same records, and in the end the same weights."""
        assert len(self.logger.records) == len(expected)
        for ours, theirs in zip(self.logger.records, expected, strict=True):
            assert_same_record(ours, theirs)
        await self.engine.save("end")
        start, end = (load_file(self.registry / key / "adapter_model.safetensors") for key in ("start", "end"))
        assert_same_change(end, reference.weights(), start)


def assert_same_record(ours: Record, theirs: Record) -> None:
    """What comes out of the model agrees as far as float32 does, all else to the last digits."""
    assert ours.keys() == theirs.keys()
    for key, value in theirs.items():
        computed = key.endswith(("loss", "grad_norm")) or key.startswith("policy/")
        limits = {"rel": 1e-4, "abs": 1e-5} if computed else {"rel": 1e-9, "abs": 1e-12}
        assert ours[key] == pytest.approx(value, **limits), (key, ours, theirs)


def assert_same_change(ours: Weights, theirs: Weights, start: Weights) -> None:
    """Adam makes a whole step of a gradient that is nothing but rounding, so a few entries may differ."""
    assert ours.keys() == theirs.keys()
    num_off = 0
    for name, value in ours.items():
        change, error = theirs[name] - start[name], value - theirs[name]
        assert change.norm() > 0, name
        assert error.norm() < 0.01 * change.norm(), name
        num_off += int((error.abs() > 1e-4 * change.abs().max()).sum())
    assert num_off < 0.005 * sum(value.numel() for value in ours.values())


def lessons(count: int) -> list[StringThread]:
    """Threads of many lengths; some have two answers, of which one has the first count by half."""
    rng, threads = np.random.default_rng(3), []
    for number in range(count):
        answer = "".join(rng.choice(list("abcdef "), size=int(rng.integers(3, 30))))
        thread = StringThread([("user", f"What is {number}?"), ("assistant", answer)])
        if number % 3 == 1:
            thread = thread.user("And then?").assistant(answer[::-1]).with_weight_all_assistant_turns()
        threads.append(thread)
    threads[1] = StringThread.from_json(threads[1].to_json().replace('"mult":1.0', '"mult":0.5', 1))
    return threads


def preferences(count: int) -> list[Pair]:
    """A better and a worse answer to each question."""
    questions = [StringThread([("user", f"Who is {number}?")]) for number in range(count)]
    return [
        (question.assistant("me" * (number + 1)), question.assistant("no " * (number % 4 + 1)))
        for number, question in enumerate(questions)
    ]
