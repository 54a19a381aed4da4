"""Checkpoints of a training: enough to go on in another process as if nothing had happened.

The weights and the optimizer's state go into the model registry; where the data set, the callbacks and the curves stood
goes into a JSON file and, through the job's notifier, to whoever keeps the job. That JSON, as a dict, is what
`checkpoint_restore_data` takes.
"""

from __future__ import annotations

import os
import re
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Generic, NamedTuple, TypeVar

import numpy as np

from harmonia.client import StringThread, TrainingModel
from harmonia.client.identifiers import uuid_v7
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.protocol.instances import SCHEME
from harmonia.trainers.callbacks import RecipeCallback
from harmonia.trainers.checkpoint_data import BaseCheckpointData, SFTCheckpointData, StageCheckpoint, broken, parse
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.records import hash_dataset

__all__ = ["GRACEFUL_EXIT", "BaseCheckpointData", "CheckpointManager", "SFTCheckpointData", "StageCheckpoint"]

log = get_logger(__name__)

GRACEFUL_EXIT = "GRACEFUL_EXIT"
"""A file of this name in a stage's folder asks for a checkpoint after the step in hand, and an end."""

_EPSILON = 1e-9


CheckpointDataT = TypeVar("CheckpointDataT", bound=BaseCheckpointData)


class _Run(NamedTuple):
    """The stages that one run of a job has begun and finished so far. A resumed run has restore data of its own."""

    restore_data: dict[str, Any] | None
    begun: list[str]
    finished: set[str]


@dataclass(eq=False, repr=False)
class CheckpointManager(Generic[CheckpointDataT]):
    """Saves and restores one stage of a job. A trainer makes one and calls, in this order:

        if manager.should_skip(): return
        await manager.restore_checkpoint_data(load)  # load(data) puts back models and steps
        # after each step, where save() gives the fields that only this trainer's data has:
        if await manager.maybe_checkpoint(share, save): break

    InvalidRequestError for restore data that is broken or of another training, naming what differs, and for a folder
    that cannot be written. Without a job id, or where HARMONY_NO_CHECKPOINTING is set, nothing is saved.
    """

    recipe_name: str
    """The kind of trainer, such as SFT; kept as `recipe_type`."""
    dataset: DataSet[Any]
    threads_dataset: Sequence[StringThread]
    """The threads of `dataset`, hashed."""
    callbacks: Sequence[RecipeCallback]
    hyperparams_hash: str
    stage_notifier: StageNotifier
    checkpoint_data_cls: type[CheckpointDataT] = BaseCheckpointData  # type: ignore[assignment]
    checkpoint_frequency: float = 0.2
    """Share of the training between checkpoints."""
    checkpoint_restore_data: dict[str, Any] | None = None
    logger: Logger | None = None

    stage: str = field(init=False)
    """The stage's name; a second stage of the same name in this run has its number appended."""
    _number: int = field(init=False)
    _run: _Run = field(init=False)
    _dataset_hash: str = field(init=False, default="")
    _restored: StageCheckpoint | None = field(init=False, default=None)
    _models: list[tuple[TrainingModel, str]] = field(init=False, default_factory=list)
    _last: float = field(init=False, default=0.0)

    _runs: ClassVar[dict[str | None, _Run]] = {}
    """The present run of each job."""

    def __post_init__(self) -> None:
        if not self.checkpoint_frequency > 0:
            raise InvalidRequestError(
                f"checkpoint_frequency must be more than 0 (0.2 saves every 20 %), got {self.checkpoint_frequency}",
                field="checkpoint_frequency",
            )
        if self.checkpoint_restore_data is not None:
            self._restored = parse(StageCheckpoint, self.checkpoint_restore_data)
        self._begin_stage()
        if self.is_enabled():
            _make(self.folder)
        if self.is_enabled() or self._restored:  # now, since a recipe may write into the metadata while it trains
            self._dataset_hash = hash_dataset(self.threads_dataset, num_samples=len(self.threads_dataset))

    def _begin_stage(self) -> None:
        """Take the next number in this run."""
        run = self._runs.get(self._job_id)
        if run is None or run.restore_data is not self.checkpoint_restore_data:
            run = self._runs[self._job_id] = _Run(self.checkpoint_restore_data, [], set())
        self._run = run
        self._number = len(self._run.begun)
        self.stage = self._name + (self.stage_suffix if self._name in self._run.begun else "")
        self._run.begun.append(self.stage)

    @classmethod
    def reset_stage_counter(cls) -> None:
        """Number the next stage 0, as in a new process."""
        cls._runs.clear()

    # ---------------------------------------------------------------------------------------------------- names

    @property
    def _job_id(self) -> str | None:
        return self.stage_notifier.job_notifier.job_id

    @property
    def _name(self) -> str:
        return self.stage_notifier.stage_name

    @property
    def _registered(self) -> list[str]:
        return list(self.stage_notifier.job_notifier.stages)

    def is_enabled(self) -> bool:
        """Whether checkpoints are saved."""
        return self._job_id is not None and not os.environ.get("HARMONY_NO_CHECKPOINTING")

    @property
    def folder(self) -> Path:
        """Where this stage's files are."""
        top = os.environ.get("RECIPE_CHECKPOINTS_DIR") or Path(tempfile.gettempdir()) / "checkpoints"
        return Path(top) / str(self._job_id) / f"stage_{self._number}"

    @property
    def stage_suffix(self) -> str:
        """What tells the models of this stage from those of the first: empty for that."""
        return f"-stage{self._number}" if self._number else ""

    def model_name(self, completion_percentage: float, role: str = "") -> str:
        """The registry key for a model saved now; `role`, such as policy or value, where a trainer has several."""
        suffix = self.stage_suffix + (f"-{role}" if role else "")
        return f"checkpoints/{self._job_id}/checkpoint-{_percent(completion_percentage)}{suffix}"

    def register_model(self, model: TrainingModel, recipe_key: str) -> None:
        """A model whose checkpoint's name `save` returns under `recipe_key`; the job hears of it by the model's key."""
        self._models.append((model, recipe_key))

    # --------------------------------------------------------------------------------------------------- saving

    async def maybe_checkpoint(
        self, completion_percentage: float, recipe_specific_checkpoint_saving: Callable[[], Awaitable[dict[str, Any]]]
    ) -> bool:
        """Save if it is time for it; whether the training shall stop here, because somebody left a GRACEFUL_EXIT."""
        if completion_percentage >= 1:
            self._run.finished.add(self.stage)
        if not self.is_enabled() or completion_percentage >= 1:
            return False
        request = self.folder / GRACEFUL_EXIT
        shall_stop = request.exists()
        if shall_stop or completion_percentage - self._last >= self.checkpoint_frequency - _EPSILON:
            await self._save(completion_percentage, recipe_specific_checkpoint_saving)
        if shall_stop:
            request.unlink(missing_ok=True)  # or the resumed training would stop at its first step
            log.warning("%s stops at %s %%: %s", self.stage, _percent(completion_percentage), request)
        return shall_stop

    async def _save(self, share: float, save: Callable[[], Awaitable[dict[str, Any]]]) -> None:
        specific = await save()
        data = self.checkpoint_data_cls(
            recipe_type=self.recipe_name,
            dataset_hash=self._dataset_hash,
            hyperparams_hash=self.hyperparams_hash,
            dataset_idx=self.dataset.idx,
            dataset_access_indices=list(self.dataset.access_indices),
            dataset_rng_state=self.dataset.rng.bit_generator.state,
            callback_last_calls=[callback.last_call for callback in self.callbacks],
            completion_percentage=share,
            logger_state={} if self.logger is None else self.logger.get_state(),
            **specific,
        )
        checkpoint = StageCheckpoint(
            active_stage=self.stage, completed_stages=self._completed(), data=data.model_dump()
        )
        text = checkpoint.model_dump_json()
        _write(self.folder / f"checkpoint-{_percent(share)}.json", text)
        self._last = share
        self._report(share, specific, text)

    def _report(self, share: float, specific: dict[str, Any], text: str) -> None:
        names = {_model_key(model): str(specific[key]) for model, key in self._models}
        self.stage_notifier.job_notifier.report_checkpoint(
            checkpoint_id=uuid_v7(),
            step=self.dataset.idx,
            completion_percentage=share * 100,
            model_checkpoint_names=names,
            user_data={"checkpoint_json": text},
            stage_name=self._name,
        )

    def _completed(self) -> list[str]:
        """The stages registered before this one, and those that this run finished."""
        return list(dict.fromkeys([*self._registered_before(self._name), *sorted(self._run.finished)]))

    def _registered_before(self, name: str) -> list[str]:
        registered = self._registered
        return registered[: registered.index(name)] if name in registered else []

    # ------------------------------------------------------------------------------------------------ restoring

    def should_skip(self) -> bool:
        """Whether the job was already past this stage."""
        if self._restored is None or self.stage == self._restored.active_stage:
            return False
        is_past = self.stage in self._restored.completed_stages
        is_past = is_past or self._name in self._registered_before(_plain_name(self._restored.active_stage))
        if is_past:
            self._run.finished.add(self.stage)
        return is_past

    def _was_active(self, restored: StageCheckpoint) -> bool:
        """Whether the checkpoint is of this stage. In a notebook a stage may begin several times, numbered on."""
        active = restored.active_stage
        if self.stage == active:
            return True
        if self._name != _plain_name(active):
            return False
        finished = [stage for stage in self._run.finished if _plain_name(stage) == self._name]
        if finished:
            log.warning("%r was finished in this run; another stage of that name starts from its beginning", self._name)
        return not finished

    async def restore_checkpoint_data(
        self, recipe_specific_checkpoint_loading: Callable[[CheckpointDataT], Awaitable[None]]
    ) -> None:
        """Put everything back if the restore data is of this stage; else do nothing."""
        if self._restored is None:
            return
        if not self._was_active(self._restored):
            self._check_known(_plain_name(self._restored.active_stage))
            return
        data = parse(self.checkpoint_data_cls, self._restored.data)
        self._check_same(data)
        rng = self._check_order(data)
        await recipe_specific_checkpoint_loading(data)
        self.dataset.idx = data.dataset_idx
        self.dataset.access_indices = list(data.dataset_access_indices)
        self.dataset.rng = rng
        self._restore_callbacks(data.callback_last_calls)
        if self.logger is not None:
            self.logger.set_state(data.logger_state)
        self._last = data.completion_percentage
        log.info("%s goes on at %s %%", self.stage, _percent(data.completion_percentage))

    def _check_known(self, stage: str) -> None:
        """InvalidRequestError unless the stage that was running is one of this job: it would train from the start."""
        known = dict.fromkeys([*self._registered, *map(_plain_name, self._run.begun)])
        if stage not in known:
            raise InvalidRequestError(
                f"the checkpoint is of stage {stage!r}, and this job has {', '.join(map(repr, known))}; resume with "
                "the recipe that wrote it, or start without checkpoint_restore_data",
                field="checkpoint_restore_data",
            )

    def _check_same(self, data: CheckpointDataT) -> None:
        """InvalidRequestError unless the data was written by the same kind of training on the same samples."""
        pairs = {
            "the trainer": (data.recipe_type, self.recipe_name),
            "the data set": (data.dataset_hash, self._dataset_hash),
            "the hyperparameters": (data.hyperparams_hash, self.hyperparams_hash),
        }
        differing = [f"{what} ({was} then, {now} now)" for what, (was, now) in pairs.items() if was != now]
        if differing:
            raise InvalidRequestError(
                f"the checkpoint of {self.stage!r} is of another training: {', '.join(differing)} differ; "
                "resume with the recipe, data and settings that wrote it, or start without checkpoint_restore_data",
                field="checkpoint_restore_data",
            )

    def _check_order(self, data: CheckpointDataT) -> np.random.Generator:
        """The generator that shuffles from here on; InvalidRequestError if the order of the samples cannot be."""
        rng, order = np.random.default_rng(), data.dataset_access_indices
        try:
            rng.bit_generator.state = data.dataset_rng_state
        except (TypeError, ValueError, KeyError, AttributeError) as error:
            raise broken(f"data.dataset_rng_state: {error}") from error
        if not 0 <= data.dataset_idx <= len(order):
            raise broken(f"data.dataset_idx: {data.dataset_idx}, and the order has {len(order)} samples")
        if any(not 0 <= place < len(self.dataset) for place in order):
            raise broken(f"data.dataset_access_indices: names samples beyond the {len(self.dataset)} that there are")
        return rng

    def _restore_callbacks(self, last_calls: Sequence[float]) -> None:
        if len(last_calls) != len(self.callbacks):
            log.warning(
                "%d callbacks now and %d when the checkpoint was saved: all start anew",
                len(self.callbacks),
                len(last_calls),
            )
            return
        for callback, last_call in zip(self.callbacks, last_calls, strict=True):
            callback.last_call = last_call


# ----------------------------------------------------------------------------------------------------------- files


def _percent(share: float) -> int:
    return int(share * 100 + _EPSILON)


def _plain_name(stage: str) -> str:
    """A stage's name without the number that tells it from an earlier one."""
    return re.sub(r"-stage\d+$", "", stage)


def _make(folder: Path) -> None:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise InvalidRequestError(
            f"cannot make {folder} for checkpoints: {error}; set RECIPE_CHECKPOINTS_DIR to a folder that can be "
            "written, or HARMONY_NO_CHECKPOINTING=1 to go without"
        ) from error


def _write(path: Path, text: str) -> None:
    """Replace the file at once, or not at all."""
    _make(path.parent)
    part = path.with_suffix(".part")
    part.write_text(text, encoding="utf-8")
    part.replace(path)


def _model_key(model: TrainingModel) -> str:
    """The registry's key of a model, or its path if it came from elsewhere."""
    return str(model.get_builder_args()["path"]).removeprefix(SCHEME)
