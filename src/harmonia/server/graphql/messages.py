"""Messages of chats."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import strawberry

from harmonia.server.services.interactions.writer import text_of


@strawberry.type
class ChatMessage:
    """One message of a chat. content: its text, without images."""

    role: str
    content: str

    @classmethod
    def of(cls, message: Mapping[str, Any]) -> ChatMessage:
        """From a message as it is kept."""
        return cls(role=str(message.get("role")), content=text_of(message))
