"""Pydantic objects from a real worker, by a grammar: even a model of random weights gives them."""

import asyncio
from pathlib import Path
from typing import Literal

import pytest
from pydantic import BaseModel, Field

from harmonia.client import HarmonyClient, InferenceModel, StringThread
from harmonia.client.structured import (
    JsonParseError,
    OutputParserException,
    get_pydantic_schema,
    pydantic_parse,
    render_schema,
)
from harmonia.errors import InvalidRequestError

ASK = StringThread([("user", "Is 2 + 2 = 4?")])


class Tree(BaseModel):
    value: int
    children: list["Tree"] = []


class Colour(BaseModel):
    name: Literal["blue", "red"]
    is_warm: bool


class Painting(BaseModel):
    year: int = Field(ge=1900, le=1999)
    colours: list[Colour] = Field(min_length=1, max_length=2)
    frame: Colour | None


@pytest.fixture
async def painter(client: HarmonyClient, tiny: Path) -> InferenceModel:
    """A model of random weights: it writes garbage unless a grammar holds it."""
    return await client.model(str(tiny), kv_cache_len=4096, tokens_to_generate=256).spawn_inference("painter")


async def test_a_grammar_makes_objects_of_garbage(painter: InferenceModel) -> None:
    strict = painter.temperature(0.0).constrained_decoding(get_pydantic_schema(Painting), "json")
    answered = await strict.generate(ASK)
    assert 1900 <= pydantic_parse(answered.last_content(), Painting).year < 2000
    tokens = await strict.generate_tokens(ASK)
    assert pydantic_parse(tokens.get_fragments()[-1][1][-1]["parsed_json"], Painting).colours


async def test_asking_for_objects(painter: InferenceModel) -> None:
    asked = StringThread([("user", "Paint!")], metadata={"id": 1})
    drawn = await asyncio.gather(*(painter.generate(asked, Painting) for _ in range(8)))
    for answered, painting in drawn:
        assert isinstance(painting, Painting) and pydantic_parse(answered.last_content(), Painting) == painting
        assert answered.metadata is asked.metadata and answered.get_turn_weights()[-1] == 1.0
    assert len({painting.year for _, painting in drawn}) > 1
    tokens, painting = await painter.generate_tokens(asked, response_model=Painting)
    assert pydantic_parse((await painter.detokenize_thread(tokens)).last_content(), Painting) == painting
    _, painting, timings = await painter.generate(asked, Painting, return_timings=True)
    assert painting.colours and timings.ttft_from_creation_ms > 0
    assert (await painter.max_gen_len(4).generate(asked)).get_turns()[0].content == "Paint!"


async def test_an_object_that_was_cut_short(painter: InferenceModel) -> None:
    with pytest.raises(OutputParserException, match="Painting"):
        await painter.max_gen_len(12).generate(ASK, Painting)
    with pytest.raises(InvalidRequestError, match=r"pydantic\.BaseModel"):
        await painter.generate(ASK, dict)  # type: ignore[type-var]


async def test_the_schema_of_a_model_within_itself_is_a_grammar(painter: InferenceModel) -> None:
    strict = painter.constrained_decoding(get_pydantic_schema(Tree), "json").max_gen_len(16)
    assert (await strict.generate(ASK)).last_content().startswith("{")


async def test_garbage_is_given_up(painter: InferenceModel) -> None:
    with pytest.raises(JsonParseError, match="holds no JSON for Painting"):
        await painter.max_gen_len(8).generate_and_validate(ASK, Painting)
    assert painter.render_schema(Painting) == render_schema(Painting)
