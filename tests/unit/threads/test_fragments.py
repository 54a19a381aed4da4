"""Turns made of fragments, and rows of data sets."""

from typing import Any

import pytest

from harmonia.errors import HarmoniaError
from harmonia.threads import StringThread

TEXT = {"type": "text", "text": "It is "}
MORE = {"type": "text", "text": "warm."}
REASONING = {"type": "reasoning", "text": "hm"}
CALL = {"type": "function_call", "call_id": "1", "name": "weather", "arguments": "{}"}
RESPONSE = {"type": "tool_response", "content": "21", "call_id": "1"}
BARE_RESPONSE = {"type": "tool_response", "content": "21"}
JSON = {"type": "structured_output", "raw_text": " {}", "parsed_json": "{}", "schema": "{}"}
IMAGE = {"type": "image", "url": "data:image/png;base64,AAAA"}
EVERY_KIND = [TEXT, REASONING, CALL, RESPONSE, BARE_RESPONSE, JSON]


async def test_fragments_come_back_as_they_were() -> None:
    thread = await StringThread.from_fragments([("user", [TEXT]), ("assistant", EVERY_KIND)], {"id": 1})
    assert thread.get_fragments() == [("user", [TEXT]), ("assistant", EVERY_KIND)]
    assert thread.last_turn_fragments() == EVERY_KIND
    assert thread.metadata == {"id": 1}


async def test_the_last_turn_of_fragments_weighs() -> None:
    thread = await StringThread.from_fragments([("assistant", [TEXT]), ("user", [TEXT])])
    assert thread.get_turn_weights() == [0.0, 1.0]


async def test_only_texts_and_objects_are_visible() -> None:
    thread = await StringThread.from_fragments([("assistant", [TEXT, REASONING, CALL, RESPONSE, JSON, MORE])])
    assert thread.get_turns() == [("assistant", "It is {}warm.")]
    assert thread.completion() == "It is  {} warm."
    assert thread.last_content() == "{}"


async def test_last_content_joins_texts_without_separator() -> None:
    assert (await StringThread.from_fragments([("user", [TEXT, REASONING, MORE])])).last_content() == "It is warm."


async def test_further_keys_are_ignored() -> None:
    thread = await StringThread.from_fragments([("user", [TEXT | {"parsed_json": "{}"}])])
    assert thread.last_turn_fragments() == [TEXT]


@pytest.mark.parametrize("value", [1, None, ["a"], {"a": "b"}])
async def test_values_of_fragments_are_strings(value: Any) -> None:
    with pytest.raises(TypeError, match="must be str"):
        await StringThread.from_fragments([("user", [TEXT | {"other": value}])])


@pytest.mark.parametrize("content", ["hi", "", 3, ["hi"], None])
async def test_content_is_a_list_of_dicts(content: Any) -> None:
    with pytest.raises(TypeError):
        await StringThread.from_fragments([("user", content)])


@pytest.mark.parametrize("fragment", [{}, {"text": "hi"}, {"type": "video"}, {"type": "text", "value": "hi"}])
async def test_unknown_or_incomplete_fragments(fragment: Any) -> None:
    with pytest.raises(HarmoniaError, match=r"'type'|'text'"):
        await StringThread.from_fragments([("user", [fragment])])


@pytest.mark.parametrize("fragment", [CALL, BARE_RESPONSE, JSON])
async def test_a_missing_key_is_named(fragment: dict[str, str]) -> None:
    for key in fragment.keys() - {"type"}:
        with pytest.raises(HarmoniaError, match=repr(key)):
            await StringThread.from_fragments([("user", [{k: v for k, v in fragment.items() if k != key}])])


# ---------------------------------------------------------------------------------------------- data sets


async def test_rows_of_data_sets_weigh_nothing() -> None:
    thread = await StringThread.from_dataset([("user", "hi"), ["assistant", [TEXT]]], {"id": 1})
    assert thread.get_turns() == [("user", "hi"), ("assistant", "It is ")]
    assert thread.get_turn_weights() == [0.0, 0.0]
    assert thread.metadata == {"id": 1}


async def test_rows_of_data_sets_need_metadata() -> None:
    with pytest.raises(TypeError):
        await StringThread.from_dataset([("user", "hi")])  # type: ignore[call-arg]


async def test_data_sets_may_say_value_for_text() -> None:
    thread = await StringThread.from_dataset([("user", [{"type": "text", "value": "hi"}])], None)
    assert thread.last_content() == "hi"


async def test_data_sets_may_leave_keys_empty() -> None:
    thread = await StringThread.from_dataset([("tool", [BARE_RESPONSE | {"call_id": None}])], None)
    assert thread.last_turn_fragments() == [BARE_RESPONSE]


@pytest.mark.parametrize(
    "row",
    [
        "hi",
        {"turns": []},
        None,
        ["user"],
        [("user",)],
        [("user", 3)],
        [(1, "hi")],
        [("user", ["hi"])],
        [("user", [{"type": "video"}])],
        [("user", [{"type": "reasoning", "value": "hm"}])],
        [("user", [{"type": "text", "value": "hm", "text": "hm"}])],
        [("user", [{"type": "text", "text": 3}])],
        [("user", "\ud83d")],
    ],
)
async def test_bad_rows_are_one_kind_of_error(row: Any) -> None:
    with pytest.raises(HarmoniaError, match=r"^Invalid dataset format: "):
        await StringThread.from_dataset(row, None)


# ---------------------------------------------------------------------------------------------- images


@pytest.mark.parametrize("image", [IMAGE, {"type": "image"}, {"type": "image", "url": "http://example.org/a.png"}])
async def test_images_are_refused_with_a_remedy(image: Any) -> None:
    with pytest.raises(HarmoniaError, match="images in prompts are not supported yet; leave"):
        await StringThread.from_fragments([("user", [TEXT, image])])
    with pytest.raises(HarmoniaError, match="images in prompts are not supported yet; leave"):
        await StringThread.from_dataset([("user", [TEXT, image])], None)
