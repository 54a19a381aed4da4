"""The JSON text of a thread."""

import json
from typing import Any

import pytest
from hypothesis import given

from harmonia.errors import HarmoniaError
from harmonia.protocol.threads import ThreadData
from harmonia.threads import StringThread
from tests.unit.threads import strategies


def document(fragment: Any = None, mult: Any = 1.0, flavor: Any = "PerToken", **more: Any) -> str:
    content = [] if fragment is None else [fragment]
    return json.dumps({"turns": [[{"role": "user", "content": content}, {"flavor": flavor, "mult": mult}]], **more})


def test_the_format() -> None:
    thread = StringThread([("user", "é")], {"id": 1}).tool("21")
    assert json.loads(thread.to_json()) == {
        "turns": [
            [{"role": "user", "content": [{"Text": "é"}]}, {"flavor": "PerToken", "mult": 1.0}],
            [
                {"role": "tool", "content": [{"ToolResponse": {"content": "21", "call_id": None}}]},
                {"flavor": "PerToken", "mult": 0.0},
            ],
        ],
        "uuid": None,
    }


@given(strategies.threads)
def test_everything_but_metadata_comes_back(data: ThreadData) -> None:
    thread = StringThread.from_data(data, {"id": 1})
    again = StringThread.from_json(thread.to_json())
    assert again.to_data() == data
    assert again.metadata is None


@pytest.mark.parametrize(
    "fragment",
    [
        {"Text": "a"},
        {"Reasoning": "a"},
        {"FunctionCall": {"call_id": "1", "name": "f", "arguments": "{}"}},
        {"ToolResponse": {"call_id": "1", "content": "a"}},
        {"StructuredOutput": {"raw_text": "{}", "parsed_json": "{}", "schema": "{}"}},
    ],
)
def test_every_kind_of_fragment(fragment: Any) -> None:
    again = json.loads(StringThread.from_json(document(fragment)).to_json())
    assert again["turns"][0][0]["content"] == [fragment]


def test_weights_are_32_bit_floats_written_short() -> None:
    thread = StringThread.from_json(document(mult=0.1))
    assert thread.get_turn_weights() == [0.10000000149011612]
    assert '"mult":0.1}' in thread.to_json()


@pytest.mark.parametrize("mult", [-2.5, 0, 3, 1e-45, 3.4028235e38])
def test_any_finite_weight_is_taken(mult: float) -> None:
    assert StringThread.from_json(document(mult=mult)).get_turn_weights() == [pytest.approx(mult, rel=1e-7, abs=1e-45)]


def test_flavors_come_from_json_only_and_stay() -> None:
    thread = StringThread.from_json(document(flavor="LastToken")).with_weight_all_assistant_turns()
    assert '"flavor":"LastToken","mult":0.0' in thread.to_json()


def test_the_uuid_comes_from_json_only_and_stays() -> None:
    assert StringThread([("user", "hi")]).uuid() is None
    thread = StringThread.from_json(document(uuid="1-2-3")).assistant("a").with_weight_last_assistant_turn()
    assert thread.uuid() == "1-2-3" and '"uuid":"1-2-3"' in thread.to_json()


def test_unknown_keys_are_ignored() -> None:
    assert StringThread.from_json(document({"Text": "a"}, version=2)).last_content() == "a"


@pytest.mark.parametrize(
    "text",
    [
        "",
        "nonsense",
        "[]",
        "{}",
        '{"turns": [[]]}',
        '{"turns": [], "x": ' + "[" * 20000 + "]" * 20000 + "}",
        document(mult="1"),
        document(mult=None),
        document(mult=1e39),
        document(flavor="Sometimes"),
        document({}),
        document({"Text": 3}),
        document({"Video": "a"}),
        document({"Text": "a", "Reasoning": "b"}),
        document({"FunctionCall": {"name": "f", "arguments": "{}"}}),
        document("hi"),
        document(uuid=3),
    ],
)
def test_bad_text_is_one_kind_of_error(text: str) -> None:
    with pytest.raises(HarmoniaError, match=r"^JSON error: "):
        StringThread.from_json(text)


@pytest.mark.parametrize("value", [None, b"{}", {}, 3])
def test_json_is_text(value: Any) -> None:
    with pytest.raises(TypeError):
        StringThread.from_json(value)


@pytest.mark.parametrize("image", [[1, 2, 3], [], "x"])
def test_images_are_refused(image: Any) -> None:
    with pytest.raises(HarmoniaError, match="images in prompts are not supported yet"):
        StringThread.from_json(document({"Image": image}))
