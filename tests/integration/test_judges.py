"""Judges with a real model of 135 million parameters, which follows examples and little else."""

from pathlib import Path

import pytest

from harmonia.client import HarmonyClient, InferenceModel, StringThread
from harmonia.client.structured import JsonParseError
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.graders import CombinedGrader, IgnoreGradeException
from harmonia.graders.judges import BinaryJudgeGrader, BinaryJudgeShot


def answered(question: str, answer: str) -> StringThread:
    return StringThread([("user", question), ("assistant", answer)])


RIGHT = BinaryJudgeShot(answered("What is the capital of Spain?", "Madrid"), "Madrid is the capital of Spain.", "PASS")
WRONG = BinaryJudgeShot(answered("What is 3+5?", "9"), "3+5 is 8, not 9.", "FAIL")
OFF_TOPIC = BinaryJudgeShot(answered("How do you do?", "Well, thank you."), "Nothing is asked for.", "NA")


@pytest.fixture
async def model(client: HarmonyClient, smollm2: Path) -> InferenceModel:
    return await client.model(str(smollm2), kv_cache_len=4096, tokens_to_generate=96).spawn_inference("judge")


async def test_right_and_wrong_answers(model: InferenceModel) -> None:
    judge = BinaryJudgeGrader("correct", model, "The answer is correct.", [WRONG, RIGHT, WRONG])
    right = await judge.grade(answered("What is 2+2?", "4"))
    wrong = await judge.grade(answered("What is 2+2?", "<think>Is it 4?</think>7"))
    assert (right.value, wrong.value, right.grader_key) == (1.0, 0.0, "correct")
    assert right.reasoning and wrong.reasoning
    logs = judge.get_logs(log_all_samples=True)
    table = logs["score/scored_samples"]
    assert logs["score/mean"] == 0.5 and logs["score/scored_samples_count"] == 2
    assert isinstance(table, Table) and table.headers == ["prompt", "reasoning", "score"] and len(table.rows) == 2
    assert judge.get_logs(clear=True).keys() == logs.keys() and judge.get_logs() == {}


async def test_without_examples_there_still_is_a_verdict(model: InferenceModel) -> None:
    judge = BinaryJudgeGrader("polite", model, "The answer is polite.", temperature=1.0)
    longer = StringThread([("system", "Be kind."), ("user", "Hi"), ("assistant", "Hello!"), ("user", "Go {away}!")])
    assert (await judge.grade(longer.assistant("As you wish. {Bye}"))).value in (0.0, 1.0)


async def test_what_does_not_apply_does_not_count(model: InferenceModel) -> None:
    judge = BinaryJudgeGrader("correct", model, "The answer is correct.", [OFF_TOPIC, OFF_TOPIC, OFF_TOPIC])
    with pytest.raises(IgnoreGradeException, match="'correct' does not apply: Nothing is asked for"):
        await judge.grade(answered("How do you do?", "Well, thank you."))
    logs = judge.get_logs()
    assert logs["score/unscored_samples_count"] == 1 and "score/mean" not in logs


async def test_a_judge_without_room_to_answer(model: InferenceModel) -> None:
    judge = BinaryJudgeGrader("correct", model.max_gen_len(5), "The answer is correct.")
    with pytest.raises(JsonParseError, match="score: Field required"):
        await judge.grade(RIGHT.thread)
    with pytest.raises(IgnoreGradeException, match="score: Field required"):
        await CombinedGrader("all", [judge]).grade(RIGHT.thread)
    assert judge.get_logs()["score/unscored_samples_count"] == 2


async def test_there_must_be_an_answer(model: InferenceModel) -> None:
    judge = BinaryJudgeGrader("correct", model, "The answer is correct.")
    for thread in (StringThread(), StringThread([("user", "What is 2+2?")])):
        with pytest.raises(InvalidRequestError, match="ends with an assistant turn"):
            await judge.grade(thread)
