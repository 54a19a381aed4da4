"""What graders are made of, as callers give it."""

from __future__ import annotations

import uuid
from enum import Enum

import strawberry

from harmonia.errors import InvalidRequestError
from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.services.graders.configs import (
    Config,
    CustomConfig,
    FunctionConfig,
    JudgeConfig,
    JudgeExample,
    JudgeTurn,
    PrebuiltConfig,
    RemoteConfig,
)


@strawberry.enum
class GraderTypeEnum(Enum):
    """How a grader scores."""

    JUDGE = "JUDGE"
    PREBUILT = "PREBUILT"
    REMOTE = "REMOTE"
    CUSTOM = "CUSTOM"
    FUNCTION = "FUNCTION"


@strawberry.enum
class PrebuiltCriteriaKey(Enum):
    """Criteria that come with the platform."""

    FAITHFULNESS = "FAITHFULNESS"
    ANSWER_RELEVANCY = "ANSWER_RELEVANCY"
    CONTEXT_RELEVANCY = "CONTEXT_RELEVANCY"


@strawberry.input
class JudgeExampleInputTurnEntry:
    """One turn of an example."""

    role: IdOrKey
    content: str


@strawberry.input
class JudgeExampleInput:
    """A conversation, an answer, and whether it passes."""

    input: list[JudgeExampleInputTurnEntry]
    output: str
    passes: bool = strawberry.field(name="pass")
    reasoning: str | None = None
    id: uuid.UUID | None = None

    def checked(self) -> JudgeExample:
        """For services."""
        turns = tuple(JudgeTurn(turn.role, turn.content) for turn in self.input)
        return JudgeExample(str(self.id or uuid.uuid4()), turns, self.output, self.passes, self.reasoning)


@strawberry.input
class JudgeConfigInput:
    """A model that passes or fails answers."""

    model: IdOrKey
    criteria: str
    examples: list[JudgeExampleInput]
    system_template: str
    user_template: str

    def checked(self) -> JudgeConfig:
        """For services."""
        examples = tuple(example.checked() for example in self.examples)
        return JudgeConfig(self.model, self.criteria, examples, self.system_template, self.user_template)


@strawberry.input
class PrebuiltConfigInput:
    """A model that judges by criteria that come with the platform."""

    key: PrebuiltCriteriaKey
    model: IdOrKey

    def checked(self) -> PrebuiltConfig:
        """For services."""
        return PrebuiltConfig(self.model, self.key.value)


@strawberry.input
class RemoteConfigInput:
    """A server outside."""

    url: str

    def checked(self) -> RemoteConfig:
        """For services."""
        return RemoteConfig(self.url)


@strawberry.input
class CustomConfigInput:
    """A grader that lives in a recipe."""

    description: str | None = None

    def checked(self) -> CustomConfig:
        """For services."""
        return CustomConfig(self.description)


@strawberry.input
class FunctionConfigInput:
    """Python source that defines `async def grade(thread) -> float`."""

    source_code: str
    description: str | None = None

    def checked(self) -> FunctionConfig:
        """For services."""
        return FunctionConfig(self.source_code, self.description)


@strawberry.input
class GraderConfigInput:
    """One of them."""

    judge: JudgeConfigInput | None = None
    prebuilt: PrebuiltConfigInput | None = None
    remote: RemoteConfigInput | None = None
    custom: CustomConfigInput | None = None
    function: FunctionConfigInput | None = None

    def checked(self) -> Config:
        """For services; InvalidRequestError unless exactly one is given."""
        parts = (self.judge, self.prebuilt, self.remote, self.custom, self.function)
        given = [part for part in parts if part is not None]
        if len(given) != 1:
            raise InvalidRequestError(
                f"graderConfig: give one of judge, prebuilt, remote, custom and function, got {len(given)}",
                field="graderConfig",
            )
        return given[0].checked()
