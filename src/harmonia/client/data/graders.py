"""Graders as the control plane describes them."""

from __future__ import annotations

from enum import Enum
from typing import Annotated, Any, Literal
from uuid import UUID

from pydantic import Field

from harmonia.client.data.formats import DtoBaseModel


class PrebuiltConfigKey(Enum):
    """Judges that need no criteria of their own."""

    AnswerRelevancy = "AnswerRelevancy"
    ContextRelevancy = "ContextRelevancy"
    Faithfulness = "Faithfulness"


class ChatMessage(DtoBaseModel):
    """One turn of an example."""

    role: str
    content: str
    metadata: Any | None = None


class JudgeExample(DtoBaseModel):
    """A conversation, an answer, and whether it passes. In JSON `pass_` is called `pass`."""

    id: UUID
    input: list[ChatMessage]
    reasoning: str | None = None
    output: str
    pass_: bool = Field(alias="pass")


class Judge(DtoBaseModel):
    """A model that passes or fails answers by criteria. model_uri: None is an external model, which has no weights."""

    model_uri: str | None
    model_key: str
    criteria: str
    examples: list[JudgeExample]
    system_template: str
    user_template: str
    type: Literal["Judge"] = "Judge"


class Prebuilt(DtoBaseModel):
    """A model that judges by criteria that come with the platform. model_uri: as of a `Judge`."""

    prebuilt_config_key: PrebuiltConfigKey
    model_uri: str | None
    model_key: str
    type: Literal["Prebuilt"] = "Prebuilt"


class Remote(DtoBaseModel):
    """A scorer behind a URL."""

    url: str
    version: str
    description: str
    type: Literal["Remote"] = "Remote"


class Custom(DtoBaseModel):
    """A grader that lives in a recipe, which brings it when it loads it."""

    description: str | None = None
    type: Literal["Custom"] = "Custom"


class Function(DtoBaseModel):
    """Python source that defines `grade`."""

    source_code: str | None = None
    description: str | None = None
    type: Literal["Function"] = "Function"


class AdaptiveGrader(DtoBaseModel):
    """A grader; `config.type` says of which kind."""

    grader_id: UUID
    key: str
    metric_id: UUID
    name: str
    config: Annotated[Judge | Prebuilt | Remote | Custom | Function, Field(discriminator="type")]
