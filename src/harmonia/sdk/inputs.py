"""What calls take as dictionaries, under Python's names, and how that goes to the server."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any, Literal, TypedDict

from harmonia.errors import InvalidRequestError


class Placement(TypedDict, total=False):
    """Where a model runs, and how long its users wait."""

    compute_pools: Sequence[str] | None
    """Keys of pools; several make it more reliable. None: any."""
    max_ttft_ms: int | None
    """Longest wait for the first token, queue included. None: the server's own bound."""


class ComputeChanges(TypedDict, total=False):
    """What one replica takes; None takes a setting back to its default."""

    tp: int | None
    """GPUs."""
    kv_cache_len: int | None
    """Tokens of key/value cache."""
    max_seq_len: int | None
    """Longest prompt plus answer, in tokens."""
    tokens_to_generate: int | None
    """Longest answer to requests that do not say, in tokens."""


class ModelFilter(TypedDict, total=False):
    """Which models are wanted."""

    in_storage: bool
    available: bool
    trainable: bool
    capabilities: Mapping[Literal["any", "all"], Sequence[str]]
    """TextGeneration, Embedding, Reasoning, ImageUnderstanding, Regression."""
    view_all: bool
    online: Sequence[str]
    """States, such as ONLINE."""
    published: bool


class JobFilter(TypedDict, total=False):
    """Which jobs are wanted."""

    kind: Sequence[Literal["CUSTOM", "INTERACTIVE"]]
    status: Sequence[Literal["PENDING", "RUNNING", "COMPLETED", "FAILED", "CANCELED"]]
    custom_recipes: Sequence[str]
    created_by: str
    name: str


class ArtifactFilter(TypedDict, total=False):
    """Which of the things that jobs made are wanted."""

    kinds: Sequence[Literal["EVALUATION", "CUSTOM", "DATASET", "MODEL", "CHECKPOINT"]]
    job_id: str


class UsageFilter(TypedDict, total=False):
    """Which usage is wanted."""

    since: int | str
    """A moment, inclusive: milliseconds since 1970, a date, or `now - 1 month`."""
    until: int | str
    """A moment, exclusive."""
    timezone: str
    """Whose days are counted, such as Europe/Paris; UTC unless given."""
    models: Sequence[str]
    """Keys or ids."""
    users: Sequence[str]
    """E-mail addresses or ids."""
    projects: Sequence[str]
    """Keys or ids."""


class Chart(TypedDict, total=False):
    """Which scores of a metric are wanted, and how they are counted."""

    since: int | str
    """A moment, inclusive: milliseconds since 1970, a date, or `now - 1 month`. Unless given, the first score."""
    until: int | str
    """A moment, exclusive."""
    timezone: str
    """Whose days are counted, such as Europe/Paris; UTC unless given."""
    by_model: bool
    """A series for each model instead of one."""
    aggregation: Literal["AVERAGE", "SUM", "COUNT"]
    """What becomes of the scores in a bucket; AVERAGE unless given."""


class RecipeDetails(TypedDict, total=False):
    """What a recipe is called, and where its code begins."""

    name: str
    description: str
    labels: Mapping[str, str]
    entrypoint: str
    """The file with its main function; main.py unless given."""
    config_entrypoint: str
    """The file with its configuration; config.py unless given."""


class InteractionDetails(TypedDict, total=False):
    """What else is known of an interaction that is recorded afterwards."""

    model: str
    feedbacks: Sequence[Mapping[str, Any]]
    """`{"metric": key, "value": ..., "reason": ..., "details": ...}`."""
    user: str
    session_id: str
    created_at: str
    """A moment as in RFC 3339."""
    labels: Mapping[str, str]


class InteractionFilter(TypedDict, total=False):
    """Which interactions are wanted; all conditions must hold."""

    models: Sequence[str]
    timerange: Mapping[Literal["from", "to"], int | str]
    """Milliseconds since 1970, dates, or `now - 1 month`."""
    session_id: str
    created_by: str
    """Id or e-mail of a user."""
    scores: Sequence[Mapping[str, Any]]
    """`{"metric": key, "gte": 0.5}`, with gt, gte, eq, neq, lt, lte, reasons."""
    comparisons: Sequence[Mapping[str, str]]
    """`{"metric": key}`."""
    labels: Sequence[Mapping[str, Any]]
    """`{"key": ..., "value": [...]}`; without values, those that have the label."""
    prompt_hash: str
    completion_id: str
    source: Sequence[Literal["LIVE", "OFFLINE", "AUTOMATION", "DATASET", "EVALUATION"]]
    completion: str
    """A text in the answer."""
    prompt: str
    """A text in the prompt."""


class Page(TypedDict, total=False):
    """Which part of a list is wanted: `first` after the cursor `after`, or `last` before `before`."""

    first: int
    after: str
    last: int
    before: str
    offset: int


class Order(TypedDict):
    """By what a list is sorted."""

    field: str
    """The name of a column, such as `created_at`."""
    order: Literal["ASC", "DESC"]


class JudgeExample(TypedDict, total=False):
    """A graded answer that a judge learns from."""

    input: Sequence[Mapping[str, str]]
    output: str
    passes: bool
    reasoning: str


def camel(name: str) -> str:
    """As the schema names it."""
    return re.sub(r"_(\w)", lambda match: match[1].upper(), name)


def checked(values: Mapping[str, Any], kind: Any, argument: str, *, with_nulls: bool = False) -> dict[str, Any]:
    """A dictionary of that kind under the schema's names; InvalidRequestError for a name that it does not have.

    kind: the TypedDict. argument: which one was given, for the message. with_nulls: send None too, which then takes
    something back to its default.
    """
    for name in values:
        if name not in kind.__annotations__:
            known = ", ".join(kind.__annotations__)
            raise InvalidRequestError(f"{argument} has no {name!r}; it takes {known}", field=argument)
    return {camel(name): value for name, value in values.items() if with_nulls or value is not None}


def timerange(since: int | str | None, until: int | str | None) -> dict[str, int | str] | None:
    """From one moment to another as the schema has it: since 1970, and until now, unless given."""
    if since is None and until is None:
        return None
    return {"from": 0 if since is None else since, "to": "now" if until is None else until}


def label_pairs(labels: Mapping[str, str] | None) -> list[dict[str, str]] | None:
    """Labels as the schema has them."""
    return None if labels is None else [{"key": key, "value": value} for key, value in labels.items()]
