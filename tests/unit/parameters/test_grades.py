"""Grades, evaluation samples and ids, with the shapes that the control plane expects."""

import json
import math
import time
from uuid import UUID

import numpy as np
import pytest

from harmonia.client.artifacts import EvaluationArtifactBase
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.identifiers import uuid_v7
from harmonia.threads import StringThread


def test_a_grade_is_a_32_bit_float() -> None:
    assert Grade(0.1, "k").value == 0.10000000149011612
    assert [Grade(value, "k").value for value in (True, 3, np.float32(0.5), np.float64(0.5))] == [1.0, 3.0, 0.5, 0.5]
    assert type(Grade(True, "k").value) is float
    assert math.isnan(Grade(math.nan, "k").value)


@pytest.mark.parametrize("value", ["1", None, [1.0]])
def test_a_grade_is_a_number(value: object) -> None:
    with pytest.raises(TypeError, match="must be a number"):
        Grade(value, "k")  # type: ignore[arg-type]
    with pytest.raises(TypeError, match="must be a number"):
        Grade(1, "k").value = value  # type: ignore[assignment]


def test_a_grade_can_be_changed_and_shown() -> None:
    grade = Grade(value=0.5, grader_key="k")
    assert repr(grade) == "Grade(value=0.5, grader_key='k', reasoning=None)"
    grade.value, grade.grader_key, grade.reasoning = 0.1, "other", "why not"
    assert (grade.value, grade.grader_key, grade.reasoning) == (0.10000000149011612, "other", "why not")
    assert grade != Grade(0.1, "other", "why not")
    with pytest.raises(TypeError):
        Grade(0.5, "k", reason="no such argument")  # type: ignore[call-arg]


def test_an_interaction_has_its_own_thread_with_the_same_metadata() -> None:
    thread = StringThread([("user", "Hi")], metadata={"id": 1})
    interaction = EvalSampleInteraction(thread)
    assert interaction.source is None
    assert interaction.thread is not thread and interaction.thread.get_turns() == thread.get_turns()
    assert interaction.thread.metadata is thread.metadata
    interaction.thread.metadata = None
    assert thread.metadata == {"id": 1}


def test_a_sample_collects_grades() -> None:
    sample = EvalSample(EvalSampleInteraction(StringThread([("user", "Hi")])), [], "set")
    sample.grades.append(Grade(1, "k"))
    assert [grade.value for grade in sample.grades] == [1.0]
    assert UUID(sample.id).version == 4
    sample.id, sample.dataset_key = "mine", "other"
    assert (sample.id, sample.dataset_key) == ("mine", "other")


def test_the_control_plane_s_json() -> None:
    thread = StringThread([("user", "Hi")], metadata={"n": 1, "id": UUID(int=1), "nan": math.nan}).assistant("Hello")
    sample = EvalSample(EvalSampleInteraction(thread, "model_registry://m"), [Grade(0.5, "k", "fine")], "set")
    bare = EvalSample(EvalSampleInteraction(StringThread([("user", "Hi")])), [], "set")
    artifact = EvaluationArtifactBase("name", "uri", "id", anything="else")
    assert artifact.kind == "eval"
    assert artifact.samples_to_adaptive_json([]) == []
    line, bare_line = artifact.samples_to_adaptive_json([sample, bare])
    assert json.loads(line) == {
        "interaction": {
            "New": {
                "turns": [
                    {"role": "user", "content": [{"type": "text", "text": "Hi"}], "metadata": None},
                    {"role": "assistant", "content": [{"type": "text", "text": "Hello"}], "metadata": None},
                ],
                "metadata": {"n": 1, "id": "00000000-0000-0000-0000-000000000001", "nan": None},
                "completion_tokens_count": None,
                "prompt_tokens_count": None,
                "model_key": "model_registry://m",
                "usage_id": None,
            }
        },
        "grades": [{"value": 0.5, "grader_key": "k", "reasoning": "fine"}],
        "dataset_key": "set",
        "id": sample.id,
    }
    assert "\n" not in line
    assert json.loads(bare_line)["interaction"]["New"]["model_key"] == ""


def test_ids_sort_by_time() -> None:
    before = time.time_ns() // 1_000_000
    first = UUID(uuid_v7())
    time.sleep(0.002)
    second = UUID(uuid_v7())
    assert (first.version, first.variant) == (7, "specified in RFC 4122")
    assert before <= first.int >> 80 <= time.time_ns() // 1_000_000
    assert str(first) < str(second)
    assert len({uuid_v7() for _ in range(1000)}) == 1000
