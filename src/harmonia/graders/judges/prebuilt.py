"""Criteria that come with the platform."""

from __future__ import annotations

from typing import NamedTuple

from harmonia.client.data import PrebuiltConfigKey


class Criteria(NamedTuple):
    """What people see, and what the judge is asked about."""

    name: str
    text: str


CRITERIA = {
    PrebuiltConfigKey.Faithfulness: Criteria(
        "Faithfulness", "The answer says nothing that the context it was given does not support."
    ),
    PrebuiltConfigKey.AnswerRelevancy: Criteria(
        "Answer relevancy", "The answer addresses what was asked, without leaving off or digressing."
    ),
    PrebuiltConfigKey.ContextRelevancy: Criteria(
        "Context relevancy", "The context that was given helps to answer what was asked."
    ),
}
