"""Data sets made of interactions."""

from __future__ import annotations

from enum import Enum

import strawberry
from strawberry.scalars import JSON

from harmonia.server.graphql.completion_filter import ScoreFilterInput
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.datasets import Dataset, DatasetKind, datasets_of
from harmonia.server.graphql.scalars import IdOrKey, Key
from harmonia.server.graphql.selections import CompletionSelectionQuery
from harmonia.server.services.datasets.datasets import NewDataset
from harmonia.server.services.datasets.filtered import RowsWish


@strawberry.enum
class SelectionTypeInput(Enum):
    """Which rows are taken."""

    ALL = "ALL"
    RANDOM = "RANDOM"
    LAST = "LAST"


@strawberry.input
class SampleConfig:
    """Which rows are taken, and how many: all, so many at random, or the last so many."""

    selection_type: SelectionTypeInput
    sample_size: int | None = None


@strawberry.input
class DatasetCreateFromFilters:
    """A data set of interactions. metrics: whose scores or comparisons it holds; None: all."""

    project: IdOrKey
    name: str
    completion_query: CompletionSelectionQuery
    kind: DatasetKind
    key: Key | None = None
    sample_config: SampleConfig | None = None
    score_filters: ScoreFilterInput | None = None
    metrics: list[IdOrKey] | None = None

    @property
    def wish(self) -> RowsWish:
        """For services."""
        sample = self.sample_config or SampleConfig(selection_type=SelectionTypeInput.ALL)
        return RowsWish(
            selection=self.completion_query.selection,
            kind=self.kind.value,
            metrics=self.metrics,
            score_labels=() if self.score_filters is None else self.score_filters.wish,
            sample=sample.selection_type.value,
            size=sample.sample_size,
        )


@strawberry.type
class FilteredDatasetQuery:
    """What such a data set would hold."""

    @strawberry.field
    async def preview_dataset_from_filters(self, info: Info, input: DatasetCreateFromFilters) -> JSON:
        """`records`: how many rows; `rows`: the first ten."""
        filtered = info.context.services.filtered_datasets
        found = await filtered.preview(info.context.caller, input.project, input.wish)
        return JSON({"records": found.records, "rows": found.rows})


@strawberry.type
class FilteredDatasetMutation:
    """Making them."""

    @strawberry.mutation
    async def create_dataset_from_filters(self, info: Info, input: DatasetCreateFromFilters) -> Dataset:
        """A data set, ready on return."""
        new = NewDataset(project=input.project, name=input.name, key=input.key, source="FILTERED")
        row = await info.context.services.filtered_datasets.create(info.context.caller, new, input.wish)
        return (await datasets_of(info, [row]))[0]
