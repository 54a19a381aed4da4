"""Templates of judges: what they become, and what is refused."""

from __future__ import annotations

import pytest

from harmonia.errors import InvalidRequestError
from harmonia.graders.judges.templates import MAX_CHARACTERS, Template

VALUES = {
    "name": "<you> & 'me'",
    "none": None,
    "empty": [],
    "items": [{"name": "a", "inner": {"x": 1}}, {"name": "b", "inner": {"x": 2}}],
    "words": ["one", "two"],
}


@pytest.mark.parametrize(
    ("template", "text"),
    [
        ("plain { } text", "plain { } text"),
        ("{{name}} {{{ name }}}", "<you> & 'me' <you> & 'me'"),
        ("[{{none}}]", "[]"),
        ("{{items.length}}", "2"),
        ("{{#if items.length}}some{{else}}none{{/if}}", "some"),
        ("{{#if empty.length}}some{{else}}none{{/if}}", "none"),
        ("{{#unless empty}}none{{/unless}}{{#if none}}x{{/if}}", "none"),
        (
            "{{#each items}}{{@index}}:{{name}}/{{{../name}}}/{{inner.x}};{{/each}}",
            "0:a/<you> & 'me'/1;1:b/<you> & 'me'/2;",
        ),
        ("{{#each words}}{{this}}{{#unless @last}}, {{/unless}}{{/each}}", "one, two"),
        ("{{#each empty}}x{{else}}nothing{{/each}}", "nothing"),
        ("a\n{{#if name}}\nb\n{{/if}}\nc\n", "a\nb\nc\n"),
        ("a\n  {{#each words}}  \n{{this}}\n{{/each}}", "a\none\ntwo\n"),
        ("a{{! a remark }}b", "ab"),
        ("{{#if none}}a{{else}}{{#if name}}b{{else}}c{{/if}}d{{/if}}", "bd"),
        ("{{#if name}}{{#if none}}a{{/if}}b{{else}}c{{/if}}", "b"),
    ],
)
def test_rendering(template: str, text: str) -> None:
    assert Template(template).render(VALUES) == text


@pytest.mark.parametrize(
    ("template", "says"),
    [
        ("{{nothing}}", "no 'nothing'"),
        ("{{name.first}}", "no 'first'"),
        ("{{../name}}", "that far up"),
        ("{{#each name}}{{/each}}", "no list"),
        ("{{#if name}}", "does not close"),
        ("{{/if}}", "not open"),
        ("{{#if name}}{{/each}}", "not open"),
        ("{{#with name}}{{/with}}", "blocks are if, unless, each"),
        ("{{> partial}}", "the name of a value"),
        ("{{name 1}}", "the name of a value"),
        ("{{}}", "the name of a value"),
        ("{{#if name}}" * 100, "16 deep"),
        ("x" * (MAX_CHARACTERS + 1), "at most"),
    ],
)
def test_mistakes_are_named(template: str, says: str) -> None:
    with pytest.raises(InvalidRequestError, match=says):
        Template(template).render(VALUES)


def test_what_becomes_of_a_template_is_bounded() -> None:
    loops = "{{#each items}}" * 5 + "x" * 100 + "{{/each}}" * 5
    with pytest.raises(InvalidRequestError, match="becomes longer"):
        Template(loops.replace("items", "many")).render({"many": [{"many": [1]}] * 10, **_nested(10, 5)})


def _nested(width: int, depth: int) -> dict[str, object]:
    inner: dict[str, object] = {"many": []}
    for _ in range(depth):
        inner = {"many": [inner] * width}
    return inner
