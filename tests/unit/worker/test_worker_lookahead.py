"""What is proposed under a grammar, and that each proposal comes with the masks of its place."""

import asyncio
import json
import time
from concurrent.futures import ThreadPoolExecutor

import pytest

from harmonia.protocol.messages import Constraint
from harmonia.worker.detokenize import TokenTable
from harmonia.worker.grammar import Compiled, GrammarCompiler
from harmonia.worker.lookahead import Guide, Habits
from tests.unit.worker.tiny_tokenizer import VOCAB_SIZE, byte_tokenizer

TOKENIZER = byte_tokenizer()
TABLE = TokenTable(TOKENIZER, VOCAB_SIZE)
MASK_BYTES = 4 * -(-VOCAB_SIZE // 32)
ROOM = {
    "type": "object",
    "properties": {"room": {"type": "string"}, "floor": {"type": "integer"}},
    "required": ["room", "floor"],
    "additionalProperties": False,
}


def compiled(kind: str, source: str) -> Compiled:
    with ThreadPoolExecutor(1) as executor:
        compiler = GrammarCompiler(TOKENIZER, TABLE, executor, max_bytes=100_000)
        return asyncio.run(compiler.compile(Constraint(kind=kind, source=source)))  # type: ignore[arg-type]


def ids(text: str) -> list[int]:
    return TOKENIZER.encode(text, add_special=False)


def written(grammar: Compiled, text: str, prompt: str = "?", habits: Habits | None = None) -> Guide:
    """An answer that has come so far."""
    guide = Guide(grammar.start(), ids(prompt), habits or Habits(TABLE))
    for token_id in ids(text):
        guide.consume(token_id)
    return guide


def proposed(guide: Guide, num_wanted: int = 8, seconds: float = 60.0) -> str:
    ahead = guide.ahead(num_wanted, time.monotonic() + seconds)
    assert len(ahead.masks) == MASK_BYTES * (1 + len(ahead.proposals))
    return b"".join(TABLE.raw(token_id) for token_id in ahead.proposals).decode()


def test_forced_text_is_proposed_and_ends_before_the_end() -> None:
    grammar = compiled("regex", "ab(cdefg|xyz)!")
    assert proposed(written(grammar, ""), 1) == "a"
    assert proposed(written(grammar, "ab")) == ""
    assert proposed(written(grammar, "abc")) == "defg"
    assert proposed(written(grammar, "abc"), 3) == "def"
    assert proposed(written(grammar, "abx"), 0) == ""


def test_masks_are_those_of_each_place() -> None:
    grammar = compiled("json_schema", json.dumps(ROOM))
    guide = written(grammar, '{"r')
    ahead = guide.ahead(8, time.monotonic() + 60)
    masks = [ahead.masks[start : start + MASK_BYTES] for start in range(0, len(ahead.masks), MASK_BYTES)]
    state = written(grammar, '{"r')
    for token_id, mask in zip([*ahead.proposals, None], masks, strict=True):
        assert state.ahead(0, 0.0).masks == mask
        if token_id is not None:
            assert mask[token_id >> 3] >> (token_id & 7) & 1
            state.consume(token_id)
    guide.consume(ids("o")[0])  # looking ahead has not moved it


def test_what_the_conversation_says_is_proposed_as_far_as_the_grammar_allows() -> None:
    grammar = compiled("json_schema", json.dumps(ROOM))
    assert proposed(written(grammar, '{"room": "bl', prompt="The black room."), 4) == "ack "
    assert proposed(written(grammar, '{"room": "bl', prompt='"blue", "floor": 7'), 8) == 'ue", "fl'
    # "is" is no key of the schema: what it forces comes in its place.
    assert proposed(written(grammar, '{"room": "bl', prompt='blue", "is": 7'), 12) == 'ue", "floor"'


def test_no_end_is_proposed() -> None:
    grammar = compiled("regex", "[a-z]{1,9}")
    end = TOKENIZER.eos_ids[0]
    guide = Guide(grammar.start(), [*ids("xyz"), end, *ids("?")], Habits(TABLE))
    for token_id in ids("xy"):
        guide.consume(token_id)
    assert guide.ahead(8, time.monotonic() + 60).proposals == tuple(ids("z"))


def test_habits_hold_what_stands_between_values() -> None:
    grammar, habits = compiled("json_schema", json.dumps(ROOM)), Habits(TABLE)
    assert proposed(written(grammar, '{"room', habits=habits)) == '"'
    written(grammar, '{"room": "secret",\n "floor": 31}', habits=habits)
    assert proposed(written(grammar, '{"room', habits=habits), 4) == '": "'
    assert proposed(written(grammar, '{"room": "x"', habits=habits), 20) == ',\n "floor": '
    assert proposed(written(grammar, '{"room": "s', habits=habits)) == ""
    # The last style is the one that is proposed.
    written(grammar, '{ "room":"", "floor":1}', habits=habits)
    assert proposed(written(grammar, '{"room": "x"', habits=habits), 10) == ', "floor":'


def test_habits_know_no_special_tokens() -> None:
    habits = Habits(TABLE)
    habits.note(ids(",")[0], TOKENIZER.eos_ids[0])
    assert habits.recall(ids(",")[0], b"") == ()


def test_without_time_there_is_a_mask_and_no_proposal() -> None:
    assert proposed(written(compiled("regex", "abcdefg"), "a"), seconds=0.0) == ""


@pytest.mark.parametrize("num_wanted", [1, 3, 8])
def test_no_more_than_wanted(num_wanted: int) -> None:
    assert proposed(written(compiled("regex", "x" * 40), "x"), num_wanted) == "x" * num_wanted
