"""What a training was told, logged and hashed."""

import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pytest
from pydantic import BaseModel

from harmonia.threads import StringThread
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.metric_loggers import Logger
from harmonia.trainers.records import hash_dataset, hash_hyperparams, hash_of, log_args


class Notes(Logger):
    """Keeps the configuration."""

    def __init__(self) -> None:
        self.config: dict[str, Any] = {}

    def __call__(self, metrics: Mapping[str, Any]) -> None:
        """Nothing to log here."""

    def log_config(self, config: dict[str, Any]) -> None:
        """Keep it."""
        self.config = config


class Schedule:
    """A learning rate with a state and no text form of its own."""

    def __init__(self, peak: float) -> None:
        self.peak = peak

    def __call__(self, share: float) -> float:
        return self.peak * share


@log_args
@hash_hyperparams({"lr", "schedule"})
@dataclass
class Trainer:
    """As trainers are written."""

    dataset: list[StringThread]
    logger: Logger
    lr: float = 0.1
    schedule: Any = None
    restore: dict[str, Any] | None = None
    hyperparams_hash: str = field(init=False)


def threads(count: int = 3) -> list[StringThread]:
    return [StringThread([("user", f"{i}?"), ("assistant", "yes")], metadata={"id": i}) for i in range(count)]


# ----------------------------------------------------------------------------------------------------- log_args


def test_the_logger_among_the_arguments_gets_the_plain_ones() -> None:
    notes = Notes()
    Trainer(threads(), notes, lr=np.float32(0.5))  # type: ignore[arg-type]
    assert notes.config == {"lr": 0.5, "schedule": None, "restore": None}


def test_a_checkpoint_is_too_long_to_be_logged() -> None:
    notes = Notes()
    Trainer(threads(), notes, restore={"order": list(range(5000))})
    assert "restore" not in notes.config


async def test_functions_are_logged_too(capsys: pytest.CaptureFixture[str]) -> None:
    class Settings(BaseModel):
        rank: int = 8

    @log_args
    async def train(settings: Settings, epochs: int = 2) -> int:
        """Ours."""
        return settings.rank * epochs

    assert await train(Settings()) == 16
    assert train.__doc__ == "Ours."
    printed = capsys.readouterr().out
    assert "epochs" in printed and "settings.rank" in printed


def test_wrong_arguments_are_the_usual_error() -> None:
    with pytest.raises(TypeError, match="unexpected keyword argument 'epoch'"):
        Trainer(threads(), Notes(), epoch=2)  # type: ignore[call-arg]


# ----------------------------------------------------------------------------------------------------- hashing


def test_only_the_named_arguments_are_hashed() -> None:
    base = Trainer(threads(), Notes()).hyperparams_hash
    assert len(base) == 16 and int(base, 16) >= 0
    assert Trainer(threads(9), Notes(), restore={}).hyperparams_hash == base
    assert Trainer(threads(), Notes(), 0.1).hyperparams_hash == base, "given or by default"
    assert Trainer(threads(), Notes(), lr=0.2).hyperparams_hash != base


def test_schedules_are_the_same_when_they_do_the_same() -> None:
    def of(schedule: object) -> str:
        return Trainer(threads(), Notes(), schedule=schedule).hyperparams_hash

    def scaled(factor: float) -> Any:
        return lambda share: share * factor

    assert of(Schedule(1.0)) == of(Schedule(1.0)) != of(Schedule(2.0))
    assert of(scaled(2.0)) == of(scaled(2.0)) != of(scaled(3.0))
    assert of(lambda share: share * 0.1) != of(lambda share: share * 0.2)
    assert of(Schedule(1.0).__call__) == of(Schedule(1.0).__call__)
    itself = Schedule(1.0)
    itself.peak = itself  # type: ignore[assignment]
    assert of(itself) == of(itself)


HASHED = """
import sys
sys.path.insert(0, {path!r})
from functools import partial
from harmonia.trainers.records import hash_of
def decay(share, lr, kinds=("a", "b")):
    return lr if share in {{"warm", "up", "x"}} else 0.0
print(hash_of([partial(decay, lr=0.1), {{"b", "a", "c"}}, lambda x: x in {{"p", "q", "r"}}, object()]))
"""


def test_hashes_are_the_same_in_every_process() -> None:
    code = HASHED.format(path=sys.path[0])
    ran = [
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": seed}
        ).stdout
        for seed in ("1", "2")
    ]
    assert ran[0] == ran[1] and len(ran[0].strip()) == 16


def test_using_a_data_set_does_not_change_its_hash() -> None:
    fresh, used = threads(), threads()
    list(DataSet(used))
    assert used[0].metadata != fresh[0].metadata
    assert hash_dataset(used) == hash_dataset(fresh) == hash_dataset(threads())


@pytest.mark.parametrize(
    "other",
    [
        threads(4),
        [*threads(2), StringThread([("user", "2?"), ("assistant", "no")], metadata={"id": 2})],
        [*threads(2), StringThread([("user", "2?"), ("assistant", "yes")], metadata={"id": 3})],
        [*threads(2), threads()[2].with_weight_assistant_turns_from_index(1)],
        threads()[::-1],
        [],
    ],
)
def test_other_threads_have_another_hash(other: list[StringThread]) -> None:
    assert hash_dataset(other) != hash_dataset(threads())


def test_some_samples_stand_for_a_large_data_set() -> None:
    some, changed = threads(100), threads(100)
    changed[40] = StringThread([("user", "other")])
    assert hash_dataset(changed) == hash_dataset(some), "the fortieth is none of the five"
    assert hash_dataset(changed, num_samples=100) != hash_dataset(some, num_samples=100)


def test_arrays_and_models_have_hashes() -> None:
    class Settings(BaseModel):
        names: set[str]

    assert hash_of(np.arange(3)) == hash_of(np.arange(3)) != hash_of(np.arange(4))
    assert hash_of(Settings(names={"a", "b"})) == hash_of(Settings(names={"b", "a"}))
