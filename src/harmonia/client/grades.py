"""What graders say of conversations, and what an evaluation collects of it."""

from __future__ import annotations

import ctypes
from typing import Any, SupportsFloat
from uuid import uuid4

from harmonia.threads import StringThread


class Grade:
    """A score of one grader, and why.

    value is kept as a 32-bit float: 0.1 reads back as 0.10000000149011612. TypeError for anything but numbers.
    """

    def __init__(self, value: SupportsFloat, grader_key: str, reasoning: str | None = None) -> None:
        self.value = value
        self.grader_key = grader_key
        self.reasoning = reasoning

    @property
    def value(self) -> float:
        """The score."""
        return self._value

    @value.setter
    def value(self, value: SupportsFloat) -> None:
        if not isinstance(value, SupportsFloat):
            raise TypeError(f"the value of a grade must be a number, not {type(value).__name__}")
        self._value: float = ctypes.c_float(float(value)).value

    def __repr__(self) -> str:
        return f"Grade(value={self.value!r}, grader_key={self.grader_key!r}, reasoning={self.reasoning!r})"


class EvalSampleInteraction:
    """A conversation that was graded, and the model that it came from (`source`), if known."""

    def __init__(self, thread: StringThread, source: str | None = None) -> None:
        # A thread of its own with the same metadata object: rebinding one's metadata leaves the other alone.
        self.thread = StringThread.from_data(thread.to_data(), thread.metadata)
        self.source = source

    def __repr__(self) -> str:
        return f"EvalSampleInteraction(thread={self.thread!r}, source={self.source!r})"


class EvalSample:
    """One row of an evaluation: an interaction and its grades, to which more may be appended. `id` is a fresh UUID."""

    def __init__(self, interaction: EvalSampleInteraction, grades: list[Grade], dataset_key: str) -> None:
        self.id = str(uuid4())
        self.interaction = interaction
        self.grades = grades
        self.dataset_key = dataset_key

    def to_adaptive_dict(self) -> dict[str, Any]:
        """The sample as the control plane stores it; `artifacts.EvaluationArtifact` writes one per line."""
        turns = [
            {"role": role, "content": content, "metadata": None}
            for role, content in self.interaction.thread.get_fragments()
        ]
        new = {
            "turns": turns,
            "metadata": self.interaction.thread.metadata,
            "completion_tokens_count": None,
            "prompt_tokens_count": None,
            "model_key": self.interaction.source or "",
            "usage_id": None,
        }
        grades = [{"value": g.value, "grader_key": g.grader_key, "reasoning": g.reasoning} for g in self.grades]
        return {"interaction": {"New": new}, "grades": grades, "dataset_key": self.dataset_key, "id": self.id}

    def __repr__(self) -> str:
        return f"EvalSample(interaction={self.interaction!r}, grades={self.grades!r}, dataset_key={self.dataset_key!r})"
