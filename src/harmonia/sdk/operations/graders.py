"""Graders."""

from __future__ import annotations

from typing import Annotated, Any

from harmonia.sdk.operations.base import Member, Operation, Result, chosen, mutation, query
from harmonia.sdk.operations.interactions import Turn
from harmonia.sdk.operations.metrics import Metric
from harmonia.sdk.operations.models import ProjectName, ServiceName


class JudgeExample(Result, frozen=True):
    """A graded answer that a judge learns from; `passed` is its grade."""

    input: list[Turn]
    output: str
    passed: Annotated[bool, chosen(field="pass")]
    reasoning: str | None


class JudgeConfigOutput(Member, frozen=True):
    """A model that judges by criteria."""

    judge_criteria: Annotated[str, chosen(field="criteria")]
    examples: list[JudgeExample]
    model: ServiceName


class PrebuiltCriteria(Result, frozen=True):
    """What a ready-made judge looks at."""

    key: str
    name: str
    description: str


class PrebuiltConfigOutput(Member, frozen=True):
    """A model that judges as it comes."""

    prebuilt_criteria: Annotated[PrebuiltCriteria, chosen(field="criteria")]
    model: ServiceName


class RemoteConfigOutput(Member, frozen=True):
    """A server of one's own that grades."""

    url: str
    version: str
    remote_description: Annotated[str, chosen(field="description")]


class CustomConfigOutput(Member, frozen=True):
    """A grader inside recipes."""

    custom_description: Annotated[str | None, chosen(field="description")]


class FunctionConfigOutput(Member, frozen=True):
    """A function that grades."""

    source_code: str | None
    function_description: Annotated[str | None, chosen(field="description")]


GraderConfig = JudgeConfigOutput | PrebuiltConfigOutput | RemoteConfigOutput | CustomConfigOutput | FunctionConfigOutput


class Grader(Result, frozen=True):
    """What gives scores in `metric`: `grader_type` JUDGE, PREBUILT, REMOTE, CUSTOM or FUNCTION."""

    id: str
    key: str | None
    name: str
    locked: bool
    grader_type: str
    grader_config: GraderConfig
    project: ProjectName
    metric: Metric
    created_at: int
    updated_at: int


class Check(Result, frozen=True):
    """One thing looked at in the source of a function."""

    name: str
    passed: bool
    message: str


class Validation(Result, frozen=True):
    """Whether the source of a function can grade."""

    valid: bool
    checks: list[Check]
    warnings: list[str]


class Deletion(Result, frozen=True):
    """Whether something was removed, and else why not."""

    success: bool
    details: str | None


class RemoteEnvTestOnline(Member, frozen=True):
    """A grading server that answered."""

    name: str
    version: str
    description: str


class RemoteEnvTestOffline(Member, frozen=True):
    """One that did not."""

    error: str


EndpointTest = RemoteEnvTestOnline | RemoteEnvTestOffline
_ENDPOINT: Any = EndpointTest

GRADERS = query("graders", list[Grader], project="IdOrKey!")
CREATE_GRADER = mutation("createGrader", Grader, project="IdOrKey!", input="GraderCreateInput!")
DELETE_GRADER = mutation("deleteGrader", Deletion, project="IdOrKey!", id="IdOrKey!")
LOCK_GRADER = mutation("lockGrader", Grader, project="IdOrKey!", id="IdOrKey!", locked="Boolean!")
VALIDATE_FUNCTION = mutation("validateFunctionGrader", Validation, project="IdOrKey!", code="String!")
TEST_ENDPOINT: Operation[EndpointTest] = mutation("testRemoteEnv", _ENDPOINT, input="RemoteEnvCreate!")
