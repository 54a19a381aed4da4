"""Completions that callers pick: changed, deleted and downloaded."""

from __future__ import annotations

import uuid

import strawberry
from strawberry.scalars import JSON

from harmonia.errors import InvalidRequestError
from harmonia.server.graphql.completion_filter import ListCompletionsFilterInput
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.interactions import Completion, CompletionGroupBy
from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.rest.selections import download_address
from harmonia.server.services.interactions.filters import OneOf, Where
from harmonia.server.services.interactions.selection import CompletionChange, Selection


@strawberry.input
class CompletionsById:
    """These completions."""

    include: list[uuid.UUID]


@strawberry.input
class CompletionsByFilters:
    """Those that a filter lets through, without some."""

    filters: ListCompletionsFilterInput
    exclude: list[uuid.UUID] | None = None


@strawberry.input
class GroupSelection:
    """Of a group all without some, or only some."""

    exclude: list[uuid.UUID] | None = None
    select_only: list[uuid.UUID] | None = None

    @property
    def where(self) -> Where:
        """For services."""
        only = None if self.select_only is None else tuple(self.select_only)
        return Where(ids=only, negated=_without(self.exclude))


@strawberry.input
class GroupSelectionQuery:
    """A group by its key: a model's key, or a prompt's hash."""

    group_id: str
    selection: GroupSelection


@strawberry.input
class FromGroupsQuery:
    """Completions of groups."""

    filters: ListCompletionsFilterInput
    grouping: CompletionGroupBy
    groups: list[GroupSelectionQuery]

    @property
    def where(self) -> Where:
        """For services."""
        groups = tuple(self._group(item) for item in self.groups)
        return Where(all_of=(self.filters.where,), any_of=groups or (Where(ids=()),))

    def _group(self, item: GroupSelectionQuery) -> Where:
        if self.grouping is CompletionGroupBy.MODEL:
            own = Where(model_key=item.group_id)
        else:
            own = Where(prompt_hash=OneOf(eq=item.group_id))
        return Where(all_of=(own, item.selection.where))


@strawberry.input
class CompletionSelectionQuery:
    """Which completions: named one by one, by a filter, or by groups; one of the three."""

    from_selection: CompletionsById | None = None
    from_filters: CompletionsByFilters | None = None
    from_groups: FromGroupsQuery | None = None

    @property
    def selection(self) -> Selection:
        """For services; InvalidRequestError unless exactly one is given."""
        given = [part for part in (self.from_selection, self.from_filters, self.from_groups) if part is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"give one of fromSelection, fromFilters and fromGroups, got {len(given)}", field="selection"
            )
        (part,) = given
        if isinstance(part, CompletionsById):
            return Selection(Where(ids=tuple(part.include)))
        if isinstance(part, FromGroupsQuery):
            return Selection(part.where, part.filters.project)
        where = Where(all_of=(part.filters.where,), negated=_without(part.exclude))
        return Selection(where, part.filters.project)


def _without(ids: list[uuid.UUID] | None) -> Where | None:
    return Where(ids=tuple(ids)) if ids else None


@strawberry.input
class CompletionLabelValue:
    """A label and its value."""

    key: str
    value: str


@strawberry.input
class UpdateCompletion:
    """What shall be different about a completion. setLabels replaces all labels; metadata must be an object."""

    id: uuid.UUID
    remove_labels: list[CompletionLabelValue] | None = None
    add_labels: list[CompletionLabelValue] | None = None
    set_labels: list[CompletionLabelValue] | None = None
    metadata: JSON | None = None

    @property
    def change(self) -> CompletionChange:
        """For services."""
        metadata: object = self.metadata
        if metadata is not None and not isinstance(metadata, dict):
            raise InvalidRequestError(f"metadata must be an object, got {metadata!r:.80}", field="metadata")
        return CompletionChange(
            remove_labels=[(item.key, item.value) for item in self.remove_labels or ()],
            add_labels=_labels(self.add_labels),
            set_labels=_labels(self.set_labels),
            metadata=metadata,
        )


def _labels(given: list[CompletionLabelValue] | None) -> dict[str, str] | None:
    return None if given is None else {item.key: item.value for item in given}


@strawberry.type
class SelectionQuery:
    """Addresses of downloads."""

    @strawberry.field
    async def completion_download_url(self, info: Info, project: IdOrKey, selection: CompletionSelectionQuery) -> str:
        """Where to get all that is known of the completions, one JSON object a line."""
        return await _address(info, project, selection, "completions")

    @strawberry.field
    async def completion_as_dataset_download_url(
        self, info: Info, project: IdOrKey, selection: CompletionSelectionQuery
    ) -> str:
        """Where to get them as rows that can be uploaded as a data set."""
        return await _address(info, project, selection, "dataset")


async def _address(info: Info, project: IdOrKey, selection: CompletionSelectionQuery, form: str) -> str:
    wanted = selection.selection
    access = await info.context.services.selections.check(info.context.caller, project, wanted)
    return download_address(access.project_id, wanted, form)


@strawberry.type
class SelectionMutation:
    """Changing completions."""

    @strawberry.mutation
    async def update_completion(self, info: Info, input: UpdateCompletion) -> Completion:
        """Change the labels and the metadata of a completion."""
        found = await info.context.services.selections.update(info.context.caller, input.id, input.change)
        return Completion.of(found)

    @strawberry.mutation
    async def delete_completion(self, info: Info, id: uuid.UUID) -> bool:
        """Forget a completion, its scores and its comparisons."""
        await info.context.services.selections.delete(info.context.caller, id)
        return True

    @strawberry.mutation
    async def delete_completion_selection(
        self, info: Info, project: IdOrKey, selection: CompletionSelectionQuery
    ) -> bool:
        """The same for many; false if nothing was selected."""
        selections = info.context.services.selections
        return await selections.delete_all(info.context.caller, project, selection.selection) > 0
