"""Graders as callers see them."""

from __future__ import annotations

import uuid
from typing import Annotated, Any

import strawberry

from harmonia.server.graphql.grader_inputs import GraderTypeEnum, PrebuiltCriteriaKey
from harmonia.server.graphql.messages import ChatMessage
from harmonia.server.graphql.metrics import Metric
from harmonia.server.graphql.models import Model
from harmonia.server.graphql.projects import Project
from harmonia.server.graphql.scalars import Timestamp
from harmonia.server.services.graders.configs import CUSTOM, JUDGE, PREBUILT, PREBUILT_CRITERIA, REMOTE
from harmonia.server.services.graders.graders import GraderInfo
from harmonia.server.services.graders.sandbox import Validation


@strawberry.type
class JudgeExample:
    """A conversation, an answer, and whether it passes."""

    input: list[ChatMessage]
    output: str
    passes: bool = strawberry.field(name="pass")
    reasoning: str | None


@strawberry.type
class JudgeConfigOutput:
    """A model that passes or fails answers."""

    criteria: str
    examples: list[JudgeExample]
    system_template: str
    user_template: str
    model: Model


@strawberry.type
class PrebuiltConfigDefinition:
    """Criteria that come with the platform."""

    key: PrebuiltCriteriaKey
    name: str
    description: str

    @classmethod
    def of(cls, key: str) -> PrebuiltConfigDefinition:
        """By key."""
        name, description = PREBUILT_CRITERIA[key]
        return cls(key=PrebuiltCriteriaKey(key), name=name, description=description)


@strawberry.type
class PrebuiltCriteria:
    """The same under another name."""

    key: PrebuiltCriteriaKey
    name: str
    description: str


@strawberry.type
class PrebuiltConfigOutput:
    """A model that judges by them."""

    criteria: PrebuiltConfigDefinition
    model: Model


@strawberry.type
class RemoteConfigOutput:
    """A server outside, and what it says of itself."""

    url: str
    version: str
    description: str


@strawberry.type
class CustomConfigOutput:
    """A grader that lives in a recipe."""

    description: str | None


@strawberry.type
class FunctionConfigOutput:
    """Python source that defines `async def grade(thread) -> float`."""

    source_code: str | None
    description: str | None


GraderConfig = Annotated[
    JudgeConfigOutput | PrebuiltConfigOutput | RemoteConfigOutput | CustomConfigOutput | FunctionConfigOutput,
    strawberry.union("GraderConfig"),
]


@strawberry.type
class Grader:
    """What scores the completions of a project, into a metric of its own."""

    id: uuid.UUID
    name: str
    key: str | None
    locked: bool
    grader_type: GraderTypeEnum
    grader_config: GraderConfig
    project: Project
    metric: Metric
    created_at: Timestamp
    updated_at: Timestamp

    @classmethod
    def of(cls, info: GraderInfo) -> Grader:
        """From its row and what it belongs to."""
        row = info.row
        return cls(
            id=row.id,
            name=row.name,
            key=row.key,
            locked=row.locked,
            grader_type=GraderTypeEnum(row.kind),
            grader_config=_config(info),
            project=Project.of(info.project),
            metric=Metric.of(info.metric),
            created_at=Timestamp(row.created_at),
            updated_at=Timestamp(row.updated_at),
        )


def _config(info: GraderInfo) -> Any:
    kind, kept = info.row.kind, info.row.config
    if kind in (JUDGE, PREBUILT):
        assert info.model is not None  # models that judge cannot be deleted
        return _judge(kept, Model.of(info.model)) if kind == JUDGE else _prebuilt(kept, Model.of(info.model))
    if kind == REMOTE:
        return RemoteConfigOutput(url=kept["url"], version=kept["version"], description=kept["description"])
    if kind == CUSTOM:
        return CustomConfigOutput(description=kept["description"])
    return FunctionConfigOutput(source_code=kept["source_code"], description=kept["description"])


def _judge(kept: dict[str, Any], model: Model) -> JudgeConfigOutput:
    examples = [
        JudgeExample(
            input=[ChatMessage.of(turn) for turn in example["input"]],
            output=example["output"],
            passes=example["passes"],
            reasoning=example["reasoning"],
        )
        for example in kept["examples"]
    ]
    return JudgeConfigOutput(
        criteria=kept["criteria"],
        examples=examples,
        system_template=kept["system_template"],
        user_template=kept["user_template"],
        model=model,
    )


def _prebuilt(kept: dict[str, Any], model: Model) -> PrebuiltConfigOutput:
    return PrebuiltConfigOutput(criteria=PrebuiltConfigDefinition.of(kept["key"]), model=model)


@strawberry.type
class ValidationCheck:
    """One thing that was looked at."""

    name: str
    passed: bool
    message: str


@strawberry.type
class ValidationResult:
    """What was found out about a source."""

    valid: bool
    checks: list[ValidationCheck]
    warnings: list[str]

    @classmethod
    def of(cls, found: Validation) -> ValidationResult:
        """From what the sandbox found."""
        checks = [ValidationCheck(name=item.name, passed=item.passed, message=item.message) for item in found.checks]
        return cls(valid=found.valid, checks=checks, warnings=list(found.warnings))


@strawberry.type
class DeleteConfirm:
    """That something is gone."""

    success: bool
    details: str | None
