"""Pydantic objects out of what models write."""

import contextlib
import json
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel, Field, RootModel

from harmonia.client import StringThread
from harmonia.client.structured import (
    JsonParseError,
    OutputParserException,
    generate_and_validate,
    get_pydantic_schema,
    get_simple_pydantic_schema,
    pydantic_parse,
    remove_reasoning,
    render_pydantic_model,
    render_schema,
)
from harmonia.errors import HarmoniaError, InvalidRequestError


class Verdict(BaseModel):
    reasoning: str = Field(description="Why,\nin a sentence")
    score: Literal["PASS", "FAIL"]


class Step(BaseModel):
    name: str
    numbers: list[int] = []


class Plan(BaseModel):
    title: str
    steps: list[Step]
    best: Step | None = None
    costs: dict[str, float] = {}


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


PASSED = Verdict(reasoning="It is right.", score="PASS")
ASK = StringThread([("user", "Is 2 + 2 = 4?")])

text = st.text() | st.sampled_from(["<think>", "</think>", "```", '{"title": 1}', "\\", '"', "]}", "\U0001f600"])
steps = st.builds(Step, name=text, numbers=st.lists(st.integers(), max_size=3))
plans = st.builds(
    Plan,
    title=text,
    steps=st.lists(steps, max_size=3),
    best=st.none() | steps,
    costs=st.dictionaries(text, st.floats(allow_nan=False, allow_infinity=False), max_size=3),
)


# ------------------------------------------------------------------------------------------------------- parsing


@pytest.mark.parametrize(
    "answer",
    [
        '{"reasoning": "It is right.", "score": "PASS"}',
        'Here it is:\n```json\n{"reasoning": "It is right.", "score": "PASS"}\n```\nI hope {that} helps [1].',
        '```\n{"reasoning": "It is right.", "score": "PASS"',
        '```\n{"reasoning": "It is right.", "score": "PASS"\n```',
        '{"reasoning": "It is right.", "score": "PASS',
        '<think>Is it {"reasoning": "no", "score": "FAIL"}?</think>{"reasoning": "It is right.", "score": "PASS"}',
        'or {"reasoning": "no", "score": "FAIL"}?</think> {"reasoning": "It is right.", "score": "PASS"}',
        'The set {a, b} [1]: {"score": "PASS", "reasoning": "It is right."}',
        '{"score": "PASS", "reasoning": "It is right.", "aside',
        '{"score": "PASS", "reasoning": "It is right.", "aside": tr',
    ],
)
def test_answers_as_models_write_them(answer: str) -> None:
    assert pydantic_parse(answer, Verdict) == PASSED


@pytest.mark.parametrize("content", ["a <think> tag", "</think>", "```json", '{"score": "FAIL"}', "line\nbreak", "\\"])
def test_what_json_quotes_is_left_alone(content: str) -> None:
    verdict = Verdict(reasoning=content, score="PASS")
    assert pydantic_parse(f"Sure:\n```json\n{render_pydantic_model(verdict)}\n```", Verdict) == verdict


def test_bare_line_ends_in_strings_are_read() -> None:
    assert pydantic_parse('{"reasoning": "one\ntwo", "score": "PASS"}', Verdict).reasoning == "one\ntwo"


def test_a_number_that_may_go_on_is_not_believed() -> None:
    assert pydantic_parse('{"name": "n", "numbers": [1, 23', Step).numbers == [1]
    assert pydantic_parse('{"name": "n", "numbers": [1, 23\n```', Step).numbers == [1, 23]


def test_half_a_character_is_dropped() -> None:
    for cut in ("\\", "\\u", "\\u00e", "\\ud83d", "\\ud83d\\ude0"):
        assert pydantic_parse('{"name": "an e' + cut, Step).name == "an e"


def test_lists_at_the_top() -> None:
    assert pydantic_parse("Here: [1, 2, 3].", RootModel[list[int]]).root == [1, 2, 3]


@pytest.mark.parametrize("answer", ["", "PASS", "{", '{"', "{}", "[", "{{{{" * 5000, "[" * 100_000, '"' * 99, "null"])
def test_nothing_usable_is_one_kind_of_error(answer: str) -> None:
    with pytest.raises(OutputParserException) as refused:
        pydantic_parse(answer, Verdict)
    assert refused.value.llm_output == answer and isinstance(refused.value, HarmoniaError)
    assert len(str(refused.value)) < 2000


def test_errors_name_the_field_and_the_answer() -> None:
    with pytest.raises(OutputParserException, match=r"Verdict: score: Input should be 'PASS' or 'FAIL'.*perhaps"):
        pydantic_parse('{"reasoning": "", "score": "perhaps"}', Verdict)


def test_an_empty_beginning_is_no_object_of_defaults() -> None:
    class Options(BaseModel):
        depth: int = 3

    assert pydantic_parse("{}", Options).depth == 3
    with pytest.raises(OutputParserException):
        pydantic_parse("```json\n{", Options)


@given(plans, st.sampled_from(["{}", "```json\n{}\n```", "Here:\n```\n{}\n```\nDone.", "<think>{{</think>\n{}"]))
def test_whole_answers_come_back_as_they_were(plan: Plan, form: str) -> None:
    assert pydantic_parse(form.replace("{}", plan.model_dump_json(indent=2), 1), Plan) == plan


@pytest.mark.parametrize(
    "thought", ['<think>{"score": "FAIL", "reasoning": ""}</think>', "<think>a</think>b<think>{</think>"]
)
def test_tags_in_the_answer_behind_tags_around_reasoning(thought: str) -> None:
    verdict = Verdict(reasoning="<think>", score="PASS")
    assert pydantic_parse(thought + verdict.model_dump_json(), Verdict) == verdict


@given(plans, st.data())
def test_a_cut_answer_is_valid_or_refused(plan: Plan, data: st.DataObject) -> None:
    answer = f"Here:\n```json\n{json.dumps(plan.model_dump(), indent=2)}\n```"
    cut = answer[: data.draw(st.integers(0, len(answer)))]
    try:
        found = pydantic_parse(cut, Plan)
    except OutputParserException:
        return
    assert Plan.model_validate(found.model_dump()) == found
    assert plan.title.startswith(found.title)
    assert len(found.steps) <= len(plan.steps)


@given(st.text(alphabet='{}[]",:\\ ab1`<think>/\n') | st.text())
def test_any_text_is_valid_or_refused(answer: str) -> None:
    with contextlib.suppress(OutputParserException):
        assert isinstance(pydantic_parse(answer, Step), Step)


def test_reasoning_is_removed() -> None:
    assert remove_reasoning("<think>hm</think>\n yes ") == "yes"
    assert remove_reasoning("opened by the prompt</think> yes") == "yes"
    assert remove_reasoning("<think>never ended") == ""
    assert remove_reasoning("a<think>b</think>c<think>d</think>e") == "ace"
    assert remove_reasoning("just yes") == "just yes"


# ------------------------------------------------------------------------------------------------------- schemas


def test_schemas_for_grammars_are_closed() -> None:
    schema = json.loads(get_pydantic_schema(Plan))
    assert schema["additionalProperties"] is False and schema["$defs"]["Step"]["additionalProperties"] is False
    assert schema["properties"]["costs"]["additionalProperties"] == {"type": "number"}
    assert all("title" not in field for field in schema["properties"].values())
    assert list(schema["properties"]) == ["title", "steps", "best", "costs"]


def test_a_field_called_as_a_keyword_of_schemas() -> None:
    class Odd(BaseModel):
        properties: Step
        type: str = Field(default="object", examples=[{"type": "object"}])

    schema = json.loads(get_pydantic_schema(Odd))
    assert list(schema["properties"]) == ["properties", "type"]
    assert schema["properties"]["type"]["examples"] == [{"type": "object"}]


def test_a_model_within_itself() -> None:
    assert json.loads(get_pydantic_schema(Tree))["properties"]["value"] == {"type": "integer"}
    assert '"children": [{' in render_schema(Tree) and '"children": [Tree, ...]' in render_schema(Tree)
    assert get_simple_pydantic_schema(Tree)["value"] == "integer"


def test_schemas_in_words() -> None:
    assert render_schema(Verdict) == ('{\n  "reasoning": string,  // Why, in a sentence\n  "score": "PASS" | "FAIL"\n}')
    assert "//" not in render_schema(Verdict, with_field_descriptions=False)
    words = render_schema(Plan)
    assert '  "steps": [{\n    "name": string,\n    "numbers": [integer, ...]  // optional\n  }, ...],' in words
    assert '"costs": {string: number, ...}  // optional' in words
    assert get_simple_pydantic_schema(Verdict) == {"reasoning": "string", "score": '"PASS" | "FAIL"'}
    assert json.loads(render_pydantic_model(PASSED)) == PASSED.model_dump()


@pytest.mark.parametrize("wrong", [dict, PASSED, "Verdict", None])
def test_only_pydantic_models_have_schemas(wrong: object) -> None:
    with pytest.raises(InvalidRequestError, match=r"pydantic\.BaseModel"):
        get_pydantic_schema(wrong)  # type: ignore[arg-type]


# ---------------------------------------------------------------------------------------------------- generating


class Answers:
    """A model of a few given answers."""

    def __init__(self, *answers: str) -> None:
        self.answers = list(answers)
        self.asked: list[StringThread] = []

    async def generate(self, thread: StringThread) -> StringThread:
        self.asked.append(thread)
        return thread.assistant(self.answers.pop(0))


async def test_asking_until_it_parses() -> None:
    model = Answers("Yes, it is.", render_pydantic_model(PASSED))
    completion, verdict = await generate_and_validate(model, ASK, Verdict)
    assert verdict == PASSED and json.loads(completion) == PASSED.model_dump()
    repair = model.asked[1].get_turns()
    assert [turn.role for turn in repair] == ["user", "assistant", "user"]
    assert "Yes, it is." in repair[-1].content and render_schema(Verdict) in repair[-1].content


async def test_giving_up() -> None:
    model = Answers("no", "still no", "never asked")
    with pytest.raises(JsonParseError, match="attempt 2") as refused:
        await generate_and_validate(model, ASK, Verdict)
    assert refused.value.completion == "still no" and len(model.asked) == 2
    with pytest.raises(JsonParseError):
        await generate_and_validate(Answers("no"), ASK, Verdict, max_parsing_retries=0)
