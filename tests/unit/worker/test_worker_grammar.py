"""Grammars: what they allow, when they are complete, and how bad ones are refused."""

import asyncio
import json
from concurrent.futures import ThreadPoolExecutor

import numpy as np
import pytest

from harmonia.errors import InvalidRequestError
from harmonia.protocol.messages import Constraint
from harmonia.worker.detokenize import TokenTable
from harmonia.worker.grammar import Compiled, Grammar, GrammarCompiler
from tests.unit.worker.tiny_tokenizer import VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
TABLE = TokenTable(TOKENIZER, VOCAB_SIZE)


@pytest.fixture
def compiler():
    with ThreadPoolExecutor(1) as executor:
        yield GrammarCompiler(TOKENIZER, TABLE, executor, max_bytes=100_000)


def allowed(mask: bytes) -> set[int]:
    bits = np.unpackbits(np.frombuffer(mask, "u1"), bitorder="little")
    return set(np.flatnonzero(bits).tolist())


def write(grammar: Grammar, text: str) -> int:
    """Write what the grammar allows; how many characters that was."""
    for count, token_id in enumerate(TOKENIZER.encode(text, add_special=False)):
        if grammar.complete or token_id not in allowed(grammar.mask()):
            return count
        grammar.consume(token_id)
    return len(text)


def json_schema(schema: object) -> Constraint:
    return Constraint(kind="json_schema", source=json.dumps(schema))


async def test_json_object_ends_with_its_brace(compiler: GrammarCompiler) -> None:
    grammar = (await compiler.compile(Constraint(kind="json_object"))).start()
    text = '{\n    "a": [1, {"b": null}],\n    "c": "x"}'
    assert write(grammar, text) == len(text)
    assert grammar.complete


async def test_white_space_is_limited(compiler: GrammarCompiler) -> None:
    compiled = await compiler.compile(Constraint(kind="json_object"))
    assert write(compiled.start(), "{   ") == 2
    assert write(compiled.start(), "{\n\n") == 2
    assert write(compiled.start(), "{\n" + " " * 40) == 18


async def test_masks_cover_the_models_vocabulary_and_no_special_token(compiler: GrammarCompiler) -> None:
    compiled = await compiler.compile(Constraint(kind="regex", source="[^a]+b"))
    assert len(compiled.first_mask) == 4 * -(-VOCAB_SIZE // 32)
    assert not allowed(compiled.first_mask) & set(range(256, 300))
    grammar = compiled.start()
    write(grammar, "xb")
    assert 256 in allowed(grammar.mask())  # the end, and it may also go on
    assert not grammar.complete


async def test_answers_of_one_grammar_are_independent(compiler: GrammarCompiler) -> None:
    compiled = await compiler.compile(Constraint(kind="regex", source="ab|cd"))
    first, second = compiled.start(), compiled.start()
    assert write(first, "ab") == 2
    assert write(second, "cd") == 2
    assert compiled.first_mask == compiled.start().mask()


async def test_a_forbidden_token_is_an_error(compiler: GrammarCompiler) -> None:
    grammar = (await compiler.compile(Constraint(kind="regex", source="a"))).start()
    with pytest.raises(InvalidRequestError, match="response_format"):
        grammar.consume(TOKENIZER.encode("b", add_special=False)[0])


async def test_equal_grammars_are_compiled_once(compiler: GrammarCompiler) -> None:
    schema = json_schema({"type": "integer"})
    first = await compiler.compile(schema)
    assert await compiler.compile(schema) is first
    for number in range(100):
        await compiler.compile(Constraint(kind="regex", source=f"{number}"))
    again = await compiler.compile(schema)
    assert isinstance(again, Compiled) and again is not first


async def test_compiling_does_not_block_the_loop(compiler: GrammarCompiler) -> None:
    wide = json_schema({"type": "object", "properties": {f"p{n}": {"enum": [f"v{n}" * 20]} for n in range(800)}})
    ticks = 0
    job = asyncio.create_task(compiler.compile(wide))
    while not job.done():
        ticks += 1
        await asyncio.sleep(0)
    assert ticks > 3


async def test_brackets_inside_strings_do_not_nest(compiler: GrammarCompiler) -> None:
    grammar = (await compiler.compile(json_schema({"const": "[" * 200}))).start()
    assert write(grammar, '"' + "[" * 200 + '"') == 202


@pytest.mark.parametrize(
    ("constraint", "says"),
    [
        (json_schema({"type": "poem"}), "Invalid type: poem"),
        (json_schema([]), "object schema"),
        (json_schema({"$ref": "http://elsewhere/x"}), "elsewhere"),
        (json_schema({"type": "string", "pattern": "(?=a)"}), "look-around"),
        (Constraint(kind="json_schema", source="{nonsense"), "response_format"),
        (Constraint(kind="json_schema", source="[" * 200 + "]" * 200), "nested 200 levels"),
        (Constraint(kind="regex", source="(a"), "unclosed group"),
        (Constraint(kind="regex", source="x" * 100_001), "100001 bytes"),
        (Constraint(kind="lark", source="start: nothing"), "unknown name"),
        (Constraint(kind="sonnet"), "'sonnet'"),
    ],
)
async def test_bad_grammars_are_refused(compiler: GrammarCompiler, constraint: Constraint, says: str) -> None:
    with pytest.raises(InvalidRequestError, match="response_format") as caught:
        await compiler.compile(constraint)
    assert says in caught.value.message
    assert caught.value.details["field"] == "response_format"
