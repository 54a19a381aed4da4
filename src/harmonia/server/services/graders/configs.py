"""What the kinds of graders are made of, checked and as it is kept."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import Any

from harmonia.client.data import PrebuiltConfigKey
from harmonia.errors import InvalidRequestError
from harmonia.graders.judges.prebuilt import CRITERIA
from harmonia.threads import StringThread

JUDGE, PREBUILT, REMOTE, CUSTOM, FUNCTION = "JUDGE", "PREBUILT", "REMOTE", "CUSTOM", "FUNCTION"

PREBUILT_CRITERIA = {
    "FAITHFULNESS": CRITERIA[PrebuiltConfigKey.Faithfulness],
    "ANSWER_RELEVANCY": CRITERIA[PrebuiltConfigKey.AnswerRelevancy],
    "CONTEXT_RELEVANCY": CRITERIA[PrebuiltConfigKey.ContextRelevancy],
}
"""By the key that the wire has for them."""


@dataclass(frozen=True, slots=True)
class JudgeTurn:
    """One turn of an example."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class JudgeExample:
    """A conversation, an answer, and whether it passes."""

    id: str
    input: tuple[JudgeTurn, ...]
    output: str
    passes: bool
    reasoning: str | None = None


@dataclass(frozen=True, slots=True)
class JudgeConfig:
    """A model that passes or fails answers. The templates are Handlebars."""

    model: str
    criteria: str
    examples: tuple[JudgeExample, ...]
    system_template: str
    user_template: str


@dataclass(frozen=True, slots=True)
class PrebuiltConfig:
    """A model that judges by criteria that come with the platform."""

    model: str
    key: str


@dataclass(frozen=True, slots=True)
class RemoteConfig:
    """A server outside; version and description are what it says of itself."""

    url: str
    version: str = ""
    description: str = ""


@dataclass(frozen=True, slots=True)
class CustomConfig:
    """A grader that lives in a recipe."""

    description: str | None = None


@dataclass(frozen=True, slots=True)
class FunctionConfig:
    """Python source that defines `async def grade(thread) -> float`."""

    source_code: str
    description: str | None = None


Config = JudgeConfig | PrebuiltConfig | RemoteConfig | CustomConfig | FunctionConfig

KINDS: dict[str, type[Config]] = {
    JUDGE: JudgeConfig,
    PREBUILT: PrebuiltConfig,
    REMOTE: RemoteConfig,
    CUSTOM: CustomConfig,
    FUNCTION: FunctionConfig,
}


def model_of(config: Config) -> str | None:
    """The id or key of the model that judges."""
    return config.model if isinstance(config, JudgeConfig | PrebuiltConfig) else None


def kept(config: Config) -> dict[str, Any]:
    """What is kept of it: everything but the model, which is kept as a reference."""
    return {name: value for name, value in asdict(config).items() if name != "model"}


def require_config(kind: str, config: Config) -> None:
    """Raise InvalidRequestError unless the settings are those of the kind, and complete."""
    if not isinstance(config, KINDS[kind]):
        raise InvalidRequestError(
            f"a grader of type {kind} wants graderConfig.{kind.lower()} and nothing else", field="graderConfig"
        )
    if isinstance(config, JudgeConfig) and not config.criteria.strip():
        raise InvalidRequestError("criteria: say what an answer must do to pass", field="criteria")
    if isinstance(config, PrebuiltConfig) and config.key not in PREBUILT_CRITERIA:
        raise InvalidRequestError(
            f"{config.key!r} is no key of criteria; there are {', '.join(PREBUILT_CRITERIA)}", field="key"
        )


SAMPLE = StringThread([("user", "What is the capital of France?"), ("assistant", "Paris.")], {})
"""What a function is tried on if the caller brings nothing."""


def sample_thread(sample: object) -> StringThread:
    """A conversation from JSON: a list of turns, or an object with `turns` or `messages`, perhaps `completion` and
    `metadata`. A turn is an object with `role` and `content`, or a pair of these. None: a short one of our own.
    """
    if sample is None:
        return SAMPLE
    rest: dict[str, Any] = sample if isinstance(sample, dict) else {"turns": sample}
    turns = next((rest[name] for name in ("turns", "messages", "prompt") if name in rest), None)
    if isinstance(turns, str):
        turns = [{"role": "user", "content": turns}]
    if not isinstance(turns, list) or not turns:
        raise InvalidRequestError(
            'testSample: give a list of turns such as [{"role": "user", "content": "Hello"}], or an object with turns',
            field="testSample",
        )
    pairs = [_turn(turn, index) for index, turn in enumerate(turns)]
    if isinstance(rest.get("completion"), str):
        pairs.append(("assistant", rest["completion"]))
    return StringThread(pairs, rest.get("metadata") or {})


def _turn(turn: object, index: int) -> tuple[str, str]:
    role, content = None, None
    if isinstance(turn, dict):
        role, content = turn.get("role"), turn.get("content")
    elif isinstance(turn, list) and len(turn) == 2:
        role, content = turn
    if not isinstance(role, str) or not isinstance(content, str):
        raise InvalidRequestError(
            f"testSample: turn {index} needs a role and a content as text, got {turn!r}", field="testSample"
        )
    return role, content
