"""Graders."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Literal
from urllib.parse import quote

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.aio.transport import AsyncTransport
from harmonia.sdk.call import REST, Call
from harmonia.sdk.conversation import Message
from harmonia.sdk.inputs import JudgeExample
from harmonia.sdk.judge_templates import SYSTEM_TEMPLATE, USER_TEMPLATE
from harmonia.sdk.operations import graders
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.graders import EndpointTest, Grader, Validation
from harmonia.sdk.sources import GradingFunction, source_of


class Verdict(msgspec.Struct, frozen=True):
    """What a grader made of an answer: a value, or why there is none.

    ignored: the grader left it out, and `error` says why. code: what kind of error it is, as `harmonia.errors` names
    them. score_id: of the score that was kept.
    """

    completion_id: str | None
    value: float | None
    reasoning: str | None
    error: str | None
    ignored: bool
    score_id: str | None
    code: str | None = None


class _Verdicts(msgspec.Struct, frozen=True):
    grades: list[Verdict]


class AsyncGraderCreation(AsyncResource):
    """`adaptive.graders.create`: one method for each kind; a grader's name is its key unless given."""

    async def binary_judge(
        self,
        *,
        key: str,
        criteria: str,
        judge_model: str,
        name: str | None = None,
        examples: Sequence[JudgeExample] = (),
        project: str | None = None,
    ) -> Grader:
        """A model that says whether an answer meets `criteria`; its metric takes 1 and 0."""
        judge = {
            "model": judge_model,
            "criteria": criteria,
            "examples": [_example(example) for example in examples],
            "systemTemplate": SYSTEM_TEMPLATE,
            "userTemplate": USER_TEMPLATE,
        }
        return await self._create("JUDGE", {"judge": judge}, key, name, project, "BOOL")

    async def prebuilt_judge(
        self,
        *,
        key: str,
        type: Literal["FAITHFULNESS", "ANSWER_RELEVANCY", "CONTEXT_RELEVANCY"],
        judge_model: str,
        name: str | None = None,
        project: str | None = None,
    ) -> Grader:
        """A model that judges in a way that the server knows."""
        prebuilt = {"key": type, "model": judge_model}
        return await self._create("PREBUILT", {"prebuilt": prebuilt}, key, name, project, None)

    async def external_endpoint(
        self, *, key: str, url: str, name: str | None = None, project: str | None = None
    ) -> Grader:
        """A server of one's own that grades."""
        return await self._create("REMOTE", {"remote": {"url": url}}, key, name, project)

    async def custom(
        self, *, key: str, description: str | None = None, name: str | None = None, project: str | None = None
    ) -> Grader:
        """A grader that lives in a recipe."""
        return await self._create("CUSTOM", {"custom": given(description=description)}, key, name, project)

    async def function(
        self,
        *,
        key: str,
        fn: GradingFunction | str,
        description: str | None = None,
        name: str | None = None,
        project: str | None = None,
    ) -> Grader:
        """An `async def grade(thread) -> float`, or its source, that the server runs on every answer, in a sandbox.

        InvalidRequestError tells what is wrong with it.
        """
        code = source_of(fn)
        found = await self.validate_function(code, project)
        if not found.valid:
            problems = "; ".join(f"{check.name}: {check.message}" for check in found.checks if not check.passed)
            raise InvalidRequestError(f"this function cannot grade: {problems}", field="fn")
        config = {"function": given(sourceCode=code, description=description)}
        return await self._create("FUNCTION", config, key, name, project)

    async def validate_function(self, fn: GradingFunction | str, project: str | None = None) -> Validation:
        """Whether a function can grade, without making a grader of it."""
        chosen = self._project(project)
        return await self._transport.execute(graders.VALIDATE_FUNCTION, project=chosen, code=source_of(fn))

    async def _create(
        self,
        kind: str,
        config: Mapping[str, Any],
        key: str,
        name: str | None,
        project: str | None,
        metric_kind: str | None = "SCALAR",
    ) -> Grader:
        shown = name or key
        metric = None if metric_kind is None else {"name": shown, "key": key, "kind": metric_kind}
        body = given(key=key, name=shown, graderType=kind, graderConfig=config, metric=metric)
        chosen = self._project(project)
        return await self._transport.execute(graders.CREATE_GRADER, project=chosen, input=body)


class AsyncGraders(AsyncResource):
    """`adaptive.graders`: what gives answers scores, by key or id."""

    def __init__(self, transport: AsyncTransport) -> None:
        super().__init__(transport)
        self.create = AsyncGraderCreation(transport)

    async def list(self, project: str | None = None) -> Sequence[Grader]:
        """Those of a project."""
        return await self._transport.execute(graders.GRADERS, project=self._project(project))

    async def get(self, grader_key: str, project: str | None = None) -> Grader | None:
        """One of them."""
        found = await self.list(project)
        return next((grader for grader in found if grader_key in (grader.key, grader.id)), None)

    async def delete(self, grader_key: str, project: str | None = None) -> None:
        """Remove one; its metric stays. InvalidRequestError says why it cannot be."""
        chosen = self._project(project)
        done = await self._transport.execute(graders.DELETE_GRADER, project=chosen, id=grader_key)
        if not done.success:
            raise InvalidRequestError(done.details or f"grader {grader_key!r} cannot be removed", field="grader_key")

    async def lock(self, grader_key: str, locked: bool, project: str | None = None) -> Grader:
        """Let nobody change it, or let them again."""
        chosen = self._project(project)
        return await self._transport.execute(graders.LOCK_GRADER, project=chosen, id=grader_key, locked=locked)

    async def grade(self, grader_key: str, completions: Sequence[str], project: str | None = None) -> Sequence[Verdict]:
        """Let a grader score answers (at most 200) by their `completion_id`; each score replaces the grader's earlier
        one. The model of a judge must be deployed; graders of the type CUSTOM run in recipes only.
        """
        return await self._verdicts(grader_key, project, {"completions": completions})

    async def try_out(
        self, grader_key: str, threads: Sequence[Sequence[Message]], project: str | None = None
    ) -> Sequence[Verdict]:
        """What a grader makes of conversations (at most 200) that end with an answer; nothing is kept."""
        return await self._verdicts(grader_key, project, {"threads": threads})

    async def _verdicts(self, grader_key: str, project: str | None, body: Mapping[str, Any]) -> Sequence[Verdict]:
        chosen, name = quote(self._project(project), safe=""), quote(grader_key, safe="")
        call = Call("POST", f"{REST}/projects/{chosen}/graders/{name}/grade", json=body)
        return (await self._transport.fetch(call, _Verdicts)).grades

    async def test_external_endpoint(self, url: str) -> EndpointTest:
        """Whether a grading server answers."""
        return await self._transport.execute(graders.TEST_ENDPOINT, input={"url": url})


def _example(example: JudgeExample) -> dict[str, Any]:
    return given(
        input=example.get("input"),
        output=example.get("output"),
        reasoning=example.get("reasoning"),
        **{"pass": example.get("passes")},
    )
