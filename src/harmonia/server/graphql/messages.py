"""Messages of chats, and their pieces."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

import strawberry

from harmonia.server.services.interactions.interaction import images_of, text_of

SHOWN = 200
"""Characters of a summary."""


@strawberry.type
class TextContentPart:
    """A text."""

    text: str


@strawberry.type
class ImageContentPart:
    """An image, as a data URI or by its address."""

    url: str


ChatMessageContentPart = Annotated[TextContentPart | ImageContentPart, strawberry.union("ChatMessageContentPart")]


@strawberry.type
class ChatMessage:
    """One message of a chat. content: its text, without images."""

    role: str
    content: str
    content_parts: list[ChatMessageContentPart]

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> ChatMessage:
        """From a message as it is kept."""
        return cls(role=str(message.get("role")), content=text_of(message), content_parts=_parts(message))


def _parts(message: Mapping[str, Any]) -> list[TextContentPart | ImageContentPart]:
    content = message.get("content")
    if isinstance(content, str):
        return [TextContentPart(text=content)]
    parts = content if isinstance(content, list) else []
    return [
        TextContentPart(text=str(part["text"])) if "text" in part else ImageContentPart(url=_url(part))
        for part in parts
        if isinstance(part, Mapping)
    ]


def _url(part: Mapping[str, Any]) -> str:
    image = part.get("image_url", part.get("url"))
    return str(image.get("url") if isinstance(image, Mapping) else image)


@strawberry.type
class PromptSummaryOutput:
    """The beginning of the last message of a prompt, and how many images the prompt has."""

    content: str | None
    truncated: bool
    image_count: int

    @classmethod
    def of(cls, messages: list[Any]) -> PromptSummaryOutput:
        """From the messages as they are kept."""
        text = text_of(messages[-1]) if messages else None
        images = sum(len(images_of(message)) for message in messages)
        is_long = text is not None and len(text) > SHOWN
        return cls(content=None if text is None else text[:SHOWN], truncated=is_long, image_count=images)


@strawberry.type
class CompletionContentSummaryOutput:
    """The beginning of an answer. imageCount: models here answer in text."""

    content: str | None
    image_count: int


@strawberry.type
class CompletionSummaryOutput:
    """A completion at a glance."""

    prompt: PromptSummaryOutput
    completion: CompletionContentSummaryOutput
