"""What a checkpoint says, and reading it back."""

from __future__ import annotations

from typing import Any, TypeVar

from pydantic import BaseModel, ValidationError

from harmonia.errors import InvalidRequestError


class BaseCheckpointData(BaseModel):
    """Where a training stood, less its models."""

    recipe_type: str
    """The trainer, such as SFT."""
    dataset_hash: str
    hyperparams_hash: str
    dataset_idx: int = 0
    """Samples drawn."""
    dataset_access_indices: list[int] = []
    """The order of the samples."""
    dataset_rng_state: Any = None
    callback_last_calls: list[float] = []
    completion_percentage: float = 0.0
    """0 to 1."""
    logger_state: dict[str, Any] = {}


class SFTCheckpointData(BaseCheckpointData):
    """Where supervised fine-tuning stood."""

    model_checkpoint_name: str
    """Key in the model registry."""
    optim_step: int
    """Steps done."""


class StageCheckpoint(BaseModel):
    """A checkpoint of a job: `data` is that of the stage that was running."""

    active_stage: str
    completed_stages: list[str] = []
    data: dict[str, Any] = {}


ModelT = TypeVar("ModelT", bound=BaseModel)


def parse(kind: type[ModelT], data: object) -> ModelT:
    """Restore data as `kind`; InvalidRequestError that names every field that is missing or wrong."""
    try:
        return kind.model_validate(data)
    except ValidationError as error:
        faults = "; ".join(f"{'.'.join(map(str, fault['loc'])) or 'data'}: {fault['msg']}" for fault in error.errors())
        raise broken(faults) from error


def broken(faults: str) -> InvalidRequestError:
    """The error for restore data with these faults."""
    return InvalidRequestError(
        f"checkpoint_restore_data is no checkpoint that can be resumed: {faults}", field="checkpoint_restore_data"
    )
