"""Making, changing and finding graders."""

from __future__ import annotations

import strawberry
from strawberry.scalars import JSON

from harmonia.server.graphql.context import Info
from harmonia.server.graphql.grader_inputs import GraderConfigInput, GraderTypeEnum
from harmonia.server.graphql.grader_types import (
    DeleteConfirm,
    Grader,
    PrebuiltConfigDefinition,
    PrebuiltCriteria,
    ValidationResult,
)
from harmonia.server.graphql.metrics import MetricCreate
from harmonia.server.graphql.scalars import IdOrKey, Key
from harmonia.server.services.graders.configs import PREBUILT_CRITERIA
from harmonia.server.services.graders.graders import GraderChange, NewGrader


@strawberry.input
class GraderCreateInput:
    """A new grader. metric: None makes one of the same key."""

    name: str
    grader_type: GraderTypeEnum
    grader_config: GraderConfigInput
    key: Key | None = None
    metric: MetricCreate | None = None


@strawberry.input
class GraderUpdateInput:
    """What shall be different about a grader."""

    name: str | None = None
    grader_type: GraderTypeEnum | None = None
    grader_config: GraderConfigInput | None = None


@strawberry.type
class GraderQuery:
    """Graders."""

    @strawberry.field
    async def graders(self, info: Info, project: IdOrKey) -> list[Grader]:
        """Those of a project."""
        return [Grader.of(item) for item in await info.context.services.graders.all(info.context.caller, project)]

    @strawberry.field
    async def grader(self, info: Info, id: IdOrKey, project: IdOrKey) -> Grader:
        """One of them."""
        return Grader.of(await info.context.services.graders.get(info.context.caller, project, id))

    @strawberry.field
    async def prebuilt_configs(self) -> list[PrebuiltConfigDefinition]:
        """Criteria that come with the platform."""
        return [PrebuiltConfigDefinition.of(key) for key in PREBUILT_CRITERIA]

    @strawberry.field
    async def prebuilt_criteria(self) -> list[PrebuiltCriteria]:
        """The same."""
        found = [PrebuiltConfigDefinition.of(key) for key in PREBUILT_CRITERIA]
        return [PrebuiltCriteria(key=item.key, name=item.name, description=item.description) for item in found]


@strawberry.type
class GraderMutation:
    """Changing graders."""

    @strawberry.mutation
    async def create_grader(self, info: Info, project: IdOrKey, input: GraderCreateInput) -> Grader:
        """A grader of a project."""
        new = NewGrader(
            name=input.name,
            kind=input.grader_type.value,
            config=input.grader_config.checked(),
            key=input.key,
            metric=None if input.metric is None else input.metric.new("GRADER"),
        )
        return Grader.of(await info.context.services.graders.create(info.context.caller, project, new))

    @strawberry.mutation
    async def update_grader(self, info: Info, project: IdOrKey, id: IdOrKey, input: GraderUpdateInput) -> Grader:
        """Change a grader that is not locked."""
        change = GraderChange(
            name=input.name,
            kind=None if input.grader_type is None else input.grader_type.value,
            config=None if input.grader_config is None else input.grader_config.checked(),
        )
        return Grader.of(await info.context.services.graders.update(info.context.caller, project, id, change))

    @strawberry.mutation
    async def delete_grader(self, info: Info, project: IdOrKey, id: IdOrKey) -> DeleteConfirm:
        """Forget a grader that is not locked; its scores stay."""
        row = await info.context.services.graders.delete(info.context.caller, project, id)
        return DeleteConfirm(success=True, details=f"grader {row.key!r} is deleted; its scores stay")

    @strawberry.mutation
    async def lock_grader(self, info: Info, project: IdOrKey, id: IdOrKey, locked: bool) -> Grader:
        """Keep a grader from changes, or let it be changed again."""
        return Grader.of(await info.context.services.graders.lock(info.context.caller, project, id, locked=locked))

    @strawberry.mutation
    async def validate_function_grader(
        self, info: Info, project: IdOrKey, code: str, test_sample: JSON | None = None
    ) -> ValidationResult:
        """Look at a function, and try it on a conversation."""
        graders = info.context.services.graders
        return ValidationResult.of(await graders.validate(info.context.caller, project, code, test_sample))
