"""What notifications are about: topics, patterns of topics, and whom an event concerns.

A topic is words joined by ':', such as `project:support:job:completed`. In a pattern, `*` stands for any text, so that
`project:*:job:*` is every job of every project. `use_case:`, the former word for a project, means `project:`.
"""

from __future__ import annotations

import re
import uuid
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from harmonia.errors import InvalidRequestError

MAX_TOPIC = 512
SCOPES = ("USER", "TEAM", "ORGANIZATION", "ADMIN")
_FORMER, _PREFIX = "use_case:", "project:"
_SIGNS = re.compile(r"[A-Za-z0-9_./:*-]+")


@dataclass(frozen=True, slots=True)
class Scope:
    """Whom an event concerns. project: its teams; organization: everybody; admin: the team `admin`."""

    users: tuple[uuid.UUID, ...] = ()
    teams: tuple[uuid.UUID, ...] = ()
    project: uuid.UUID | None = None
    organization: bool = False
    admin: bool = False


@dataclass(frozen=True, slots=True)
class Subscription:
    """What an integration wants to hear. target_filter: values that the payload must have, by name; a list: one of."""

    topic_pattern: str
    scope: str
    target_filter: Mapping[str, Any] | None = None


def current(topic: str) -> str:
    """A topic or pattern with the word that is used now."""
    return _PREFIX + topic[len(_FORMER) :] if topic.startswith(_FORMER) else topic


def checked_topic(topic: str, field: str, *, is_pattern: bool = False) -> str:
    """The topic as given; InvalidRequestError unless it is one."""
    if len(topic) > MAX_TOPIC or not _SIGNS.fullmatch(topic) or ("*" in topic and not is_pattern):
        stars = ", and '*' for any text" if is_pattern else ""
        raise InvalidRequestError(
            f"{field}: {topic[:80]!r} is no topic; join words with ':', as in project:support:job:completed{stars}",
            field=field,
        )
    return topic


def matches(pattern: str, topic: str) -> bool:
    """Whether a topic is one of those that a pattern means."""
    parts = [re.escape(part) for part in current(pattern).split("*")]
    return re.fullmatch(".*".join(parts), current(topic)) is not None


def admits(target_filter: Mapping[str, Any] | None, payload: Mapping[str, Any]) -> bool:
    """Whether a payload has the values that a filter asks for."""
    for name, wanted in (target_filter or {}).items():
        found = payload.get(name)
        if found not in (wanted if isinstance(wanted, list) else [wanted]):
            return False
    return True
