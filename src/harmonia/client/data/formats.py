"""Rows of data sets as the control plane stores them; further keys of a row are ignored."""

from __future__ import annotations

from collections.abc import Sequence
from enum import Enum
from typing import Any, TypeAlias
from uuid import UUID

from pydantic import BaseModel, ConfigDict, RootModel, ValidationError, field_validator

from harmonia.errors import InvalidRequestError


class DtoBaseModel(BaseModel):
    """Data that the control plane and recipes exchange."""

    model_config = ConfigDict(populate_by_name=True)


class AdaptiveDatasetKind(Enum):
    """What the rows of a data set hold."""

    Prompt = "Prompt"
    Completion = "Completion"
    Metric = "Metric"
    Preference = "Preference"
    Mixed = "Mixed"


class TurnTuple(RootModel[list[Any]]):
    """`[role, content]`, where content is a text or a list of fragments."""

    @field_validator("root")
    @classmethod
    def _is_turn(cls, turn: list[Any]) -> list[Any]:
        if len(turn) != 2 or not isinstance(turn[0], str) or not isinstance(turn[1], str | list):
            raise ValueError("a turn is [role, text] or [role, list of fragments]")
        return turn


class SampleMetadata(DtoBaseModel):
    """Where a row comes from. `created_at` counts seconds since 1970; `external_data` is the caller's."""

    id: UUID
    created_at: int
    model_id: UUID | None = None
    external_data: Any | None = None
    labels: dict[str, Any] | None = None


class DatasetPromptSample(DtoBaseModel):
    """A conversation to answer."""

    prompt: list[TurnTuple]
    metadata: SampleMetadata


class DatasetSample(DtoBaseModel):
    """A conversation and its answer."""

    prompt: list[TurnTuple]
    completion: TurnTuple
    metadata: SampleMetadata


class DatasetMetricSample(DtoBaseModel):
    """A conversation, its answer, and what it was found to be worth."""

    prompt: list[TurnTuple]
    completion: TurnTuple
    metrics: dict[str, float]
    metadata: SampleMetadata


class DatasetPreferenceSample(DtoBaseModel):
    """A conversation, and two answers of which one is better."""

    prompt: list[TurnTuple]
    good_completion: TurnTuple
    bad_completion: TurnTuple
    metric: str | None = "preference"
    metadata: SampleMetadata


DatasetSampleType: TypeAlias = DatasetSample | DatasetPromptSample | DatasetMetricSample | DatasetPreferenceSample

# The most demanding first: a row with a completion is also one without.
ALL_FORMATS: tuple[type[DatasetSampleType], ...] = (
    DatasetPreferenceSample,
    DatasetMetricSample,
    DatasetSample,
    DatasetPromptSample,
)


def parse_sample(row: dict[str, Any], formats: Sequence[type[DatasetSampleType]] = ALL_FORMATS) -> DatasetSampleType:
    """The row in the first format that it fits; InvalidRequestError says what keeps it from the nearest one."""
    failures: list[ValidationError] = []
    for sample in formats:
        try:
            return sample.model_validate(row)
        except ValidationError as error:
            failures.append(error)
    raise InvalidRequestError(_problems(min(failures, key=ValidationError.error_count)))


def _problems(error: ValidationError) -> str:
    return "; ".join(f"{'.'.join(map(str, e['loc'])) or 'row'}: {e['msg']}" for e in error.errors(include_url=False))
