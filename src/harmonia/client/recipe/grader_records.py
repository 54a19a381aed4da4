"""Graders and their verdicts as the control plane tells of them, and as recipes read them."""

from __future__ import annotations

import uuid
from collections.abc import Callable, Mapping
from typing import Any

import msgspec

from harmonia.client.data import AdaptiveGrader

GRADER = """query ($key: IdOrKey!, $project: IdOrKey!) { grader(id: $key, project: $project) {
  id key name metric { id } graderConfig { __typename
    ... on FunctionConfigOutput { sourceCode functionDescription: description }
    ... on JudgeConfigOutput { criteria systemTemplate userTemplate model { key harmonyUrl }
      examples { input { role content } reasoning output pass } }
    ... on PrebuiltConfigOutput { prebuilt: criteria { key } model { key harmonyUrl } }
    ... on RemoteConfigOutput { url version remoteDescription: description }
    ... on CustomConfigOutput { customDescription: description } } } }"""
"""Fields of one name but different types have names of their own, since one answer may not have both."""


class Verdict(msgspec.Struct, frozen=True):
    """What a grader that the control plane runs made of a conversation: a value, or an error with its code."""

    value: float | None = None
    reasoning: str | None = None
    error: str | None = None
    code: str | None = None
    ignored: bool = False
    """The grader left the conversation out; the error says why."""


class Verdicts(msgspec.Struct, frozen=True):
    """Those of several conversations, in their order."""

    grades: list[Verdict]


def grader_record(told: Mapping[str, Any]) -> AdaptiveGrader:
    """What `GRADER` was answered with, as recipes read it."""
    config = told["graderConfig"]
    fields = {
        "grader_id": told["id"],
        "key": told["key"] or told["id"],
        "metric_id": told["metric"]["id"],
        "name": told["name"],
        "config": _KINDS[config["__typename"]](config, uuid.UUID(told["id"])),
    }
    return AdaptiveGrader.model_validate(fields)


def _function(told: Mapping[str, Any], _: uuid.UUID) -> dict[str, Any]:
    return {"type": "Function", "source_code": told["sourceCode"], "description": told["functionDescription"]}


def _judge(told: Mapping[str, Any], grader: uuid.UUID) -> dict[str, Any]:
    # Examples have no names outside of their grader, so each gets one that is the same whenever it is read.
    examples = [{**example, "id": uuid.uuid5(grader, str(place))} for place, example in enumerate(told["examples"])]
    return {
        "type": "Judge",
        **_model(told),
        "criteria": told["criteria"],
        "examples": examples,
        "system_template": told["systemTemplate"],
        "user_template": told["userTemplate"],
    }


def _prebuilt(told: Mapping[str, Any], _: uuid.UUID) -> dict[str, Any]:
    key = told["prebuilt"]["key"].title().replace("_", "")
    return {"type": "Prebuilt", **_model(told), "prebuilt_config_key": key}


def _remote(told: Mapping[str, Any], _: uuid.UUID) -> dict[str, Any]:
    description = told["remoteDescription"]
    return {"type": "Remote", "url": told["url"], "version": told["version"], "description": description}


def _custom(told: Mapping[str, Any], _: uuid.UUID) -> dict[str, Any]:
    return {"type": "Custom", "description": told["customDescription"]}


def _model(told: Mapping[str, Any]) -> dict[str, Any]:
    return {"model_uri": told["model"]["harmonyUrl"], "model_key": told["model"]["key"]}


_KINDS: dict[str, Callable[[Mapping[str, Any], uuid.UUID], dict[str, Any]]] = {
    "FunctionConfigOutput": _function,
    "JudgeConfigOutput": _judge,
    "PrebuiltConfigOutput": _prebuilt,
    "RemoteConfigOutput": _remote,
    "CustomConfigOutput": _custom,
}
