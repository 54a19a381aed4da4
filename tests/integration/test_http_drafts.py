"""`harmonia serve --draft`: clients see the same answers, and how many proposals were right."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.chat import ChatCompletion

from tests.integration.conftest import Server, start_server

MESSAGES = [{"role": "user", "content": "Tell me something, and tell me something again."}]
SCHEMA = {"type": "object", "properties": {"a": {"type": "integer"}}, "required": ["a"], "additionalProperties": False}
WINDOW = {"type": "object", "properties": {"is_open": {"type": "boolean"}}, "required": ["is_open"]}
WINDOWS = {"type": "array", "items": {**WINDOW, "additionalProperties": False}, "minItems": 3, "maxItems": 3}
REQUESTS = [
    {"temperature": 0, "max_tokens": 40},
    {"temperature": 1, "seed": 3, "max_tokens": 40, "n": 2},
    {"temperature": 0.8, "top_p": 0.9, "seed": 4, "max_tokens": 30, "logprobs": True, "top_logprobs": 2},
    {"temperature": 1, "seed": 5, "max_tokens": 40, "presence_penalty": 1.0, "stop": ["a"]},
    {
        "temperature": 1,
        "seed": 6,
        "max_tokens": 30,
        "response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": SCHEMA}},
    },
    {
        "temperature": 0,
        "max_tokens": 100,
        "n": 2,
        "logprobs": True,
        "response_format": {"type": "json_schema", "json_schema": {"name": "windows", "schema": WINDOWS}},
    },
]


@pytest.fixture(scope="module", params=["model", "ngram"])
def drafted(request: pytest.FixtureRequest, tiny: Path) -> Iterator[Server]:
    draft = str(tiny) if request.param == "model" else "ngram"
    options = ("--kv-cache-len", "8192", "--threads", "1", "--draft", draft, "--num-draft-steps", "3")
    with start_server(tiny, *options) as running:
        yield running


def answer(server: Server, settings: dict[str, object]) -> ChatCompletion:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as client:
        return client.chat.completions.create(model="tiny", messages=MESSAGES, **settings)  # type: ignore[call-overload]


@pytest.mark.parametrize(
    "settings", REQUESTS, ids=["greedy", "seeded", "logprobs", "penalty-and-stop", "schema", "greedy-schema"]
)
def test_answers_are_those_of_a_server_without_a_draft(
    server: Server, drafted: Server, settings: dict[str, object]
) -> None:
    plain, proposed = answer(server, settings), answer(drafted, settings)
    for one, other in zip(plain.choices, proposed.choices, strict=True):
        assert one.message.content == other.message.content
        assert one.finish_reason == other.finish_reason
        assert bool(one.logprobs) == bool(other.logprobs)
        if one.logprobs and other.logprobs:
            ours, theirs = one.logprobs.content or [], other.logprobs.content or []
            assert [item.token for item in ours] == [item.token for item in theirs]
            assert [item.logprob for item in ours] == pytest.approx([item.logprob for item in theirs], abs=1e-5)


def test_a_stream_brings_the_same_text(drafted: Server) -> None:
    settings = REQUESTS[0]
    with OpenAI(base_url=f"{drafted.url}/v1", api_key="none") as client:
        chunks = client.chat.completions.create(model="tiny", messages=MESSAGES, stream=True, **settings)  # type: ignore[call-overload]
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks if chunk.choices)
    assert text == answer(drafted, settings).choices[0].message.content


def test_acceptance_is_told(server: Server, tiny: Path) -> None:
    """A draft that is the target is always right."""
    with start_server(tiny, "--kv-cache-len", "2048", "--threads", "1", "--draft", str(tiny)) as drafted:
        details = answer(drafted, REQUESTS[0]).usage.completion_tokens_details  # type: ignore[union-attr]
        assert details is not None
        assert details.accepted_prediction_tokens
        assert details.rejected_prediction_tokens == 0
        with drafted.client() as http:
            metrics = http.get("/metrics").text
    lines = {line.split("{")[0]: float(line.split()[-1]) for line in metrics.splitlines() if "tokens_total{" in line}
    assert lines["harmonia_drafted_tokens_total"] == lines["harmonia_accepted_tokens_total"] > 0
    assert answer(server, REQUESTS[0]).usage.completion_tokens_details is None  # type: ignore[union-attr]


def test_what_a_schema_forces_is_proposed(drafted: Server) -> None:
    give_up, accepted = time.monotonic() + 90, 0
    while not accepted:  # where proposals do not pay, as with so small a model, they are tried seldom
        assert time.monotonic() < give_up
        answered = answer(drafted, REQUESTS[-1])
        assert [len(json.loads(choice.message.content or "")) for choice in answered.choices] == [3, 3]
        details = answered.usage and answered.usage.completion_tokens_details
        accepted = details.accepted_prediction_tokens or 0 if details else 0


def test_a_draft_that_reads_other_tokens_is_refused_at_start(tiny: Path, tmp_path: Path) -> None:
    stranger = shutil.copytree(tiny, tmp_path / "stranger")
    file = stranger / "tokenizer.json"
    file.write_text(file.read_text().replace("<|im_start|>", "<|begin|>"))
    with start_server(tiny, "--draft", str(stranger), ready=False) as refused:
        assert refused.process.wait(90) == 1
    assert "another tokenizer" in refused.output and "<|begin|>" in refused.output
