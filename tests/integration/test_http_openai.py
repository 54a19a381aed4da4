"""What OpenAI's own client gets from a real server with a real (tiny, random) model."""

import base64
import json
import math
import struct
import uuid
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import httpx
import openai
import pytest
from openai import OpenAI

from tests.integration.conftest import Server

MESSAGES = [{"role": "user", "content": "Tell me something."}]
GREEDY = {"model": "tiny", "temperature": 0, "max_tokens": 12}


@pytest.fixture(scope="module")
def client(server: Server) -> Iterator[OpenAI]:
    with OpenAI(base_url=f"{server.url}/v1", api_key="none", max_retries=0) as opened:
        yield opened


@pytest.fixture(scope="module")
def http(server: Server) -> Iterator[httpx.Client]:
    with server.client() as opened:
        yield opened


def test_models_are_listed_and_retrieved(client: OpenAI) -> None:
    assert [model.id for model in client.models.list()] == ["tiny"]
    assert client.models.retrieve("tiny").owned_by == "harmonia"
    with pytest.raises(openai.NotFoundError):
        client.models.retrieve("huge")


def test_stream_equals_the_whole_answer(client: OpenAI) -> None:
    whole = client.chat.completions.create(messages=MESSAGES, **GREEDY)
    options = {"include_usage": True}
    chunks = list(client.chat.completions.create(messages=MESSAGES, stream=True, stream_options=options, **GREEDY))
    text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert text == whole.choices[0].message.content
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens <= 12
    assert whole.choices[0].finish_reason in ("length", "stop")


def test_company_does_not_change_an_answer(client: OpenAI) -> None:
    def ask(number: int) -> str:
        messages = [{"role": "user", "content": f"Question {number}"}]
        return client.chat.completions.create(messages=messages, **GREEDY).choices[0].message.content

    alone = [ask(number) for number in range(6)]
    with ThreadPoolExecutor(6) as pool:
        assert list(pool.map(ask, range(6))) == alone


def test_seed_repeats_and_choices_differ(client: OpenAI) -> None:
    settings = {"model": "tiny", "messages": MESSAGES, "max_tokens": 16, "seed": 5, "n": 3}
    first, second = (client.chat.completions.create(**settings) for _ in range(2))
    texts = [choice.message.content for choice in first.choices]
    assert texts == [choice.message.content for choice in second.choices]
    assert len(set(texts)) == 3


def test_log_probabilities_are_natural_and_ordered(client: OpenAI) -> None:
    answer = client.chat.completions.create(messages=MESSAGES, logprobs=True, top_logprobs=3, **GREEDY)
    entries = answer.choices[0].logprobs.content
    assert len(entries) == answer.usage.completion_tokens
    for entry in entries:
        best = [top.logprob for top in entry.top_logprobs]
        assert best == sorted(best, reverse=True)
        assert math.isclose(entry.logprob, best[0], abs_tol=1e-5)


def test_stop_string_ends_the_answer_before_it(client: OpenAI) -> None:
    text = client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content
    stop = text[3:5]
    cut = client.chat.completions.create(messages=MESSAGES, stop=stop, **GREEDY).choices[0]
    assert (cut.message.content, cut.finish_reason) == (text[: text.index(stop)], "stop")


def test_json_schema_is_obeyed(client: OpenAI) -> None:
    schema = {"type": "object", "properties": {"n": {"type": "integer", "minimum": 0, "maximum": 99}}}
    schema |= {"required": ["n"], "additionalProperties": False}
    wanted = {"type": "json_schema", "json_schema": {"name": "number", "schema": schema}}
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, response_format=wanted, max_tokens=60, seed=1
    )
    assert 0 <= json.loads(answer.choices[0].message.content)["n"] <= 99


def test_required_tool_is_called(client: OpenAI) -> None:
    parameters = {"type": "object", "properties": {"on": {"type": "boolean"}}, "required": ["on"]}
    function = {"name": "light", "parameters": {**parameters, "additionalProperties": False}}
    tools = [{"type": "function", "function": function}]
    answer = client.chat.completions.create(
        model="tiny", messages=MESSAGES, tools=tools, tool_choice="required", max_tokens=120, seed=2
    )
    call = answer.choices[0].message.tool_calls[0]
    assert (call.function.name, answer.choices[0].finish_reason) == ("light", "tool_calls")
    assert isinstance(json.loads(call.function.arguments)["on"], bool)


def test_second_turn_takes_the_first_from_the_cache(client: OpenAI) -> None:
    session = {"session_id": str(uuid.uuid4())}
    messages = [{"role": "user", "content": "A long first question. " * 6}]
    first = client.chat.completions.create(messages=messages, extra_body=session, **GREEDY)
    messages += [first.choices[0].message.to_dict(), {"role": "user", "content": "And?"}]
    second = client.chat.completions.create(messages=messages, extra_body=session, **GREEDY)
    assert second.model_extra["session_id"] == session["session_id"]
    assert second.usage.prompt_tokens_details.cached_tokens >= 128


def test_completions_take_text_tokens_and_batches(client: OpenAI) -> None:
    batch = client.completions.create(prompt=["ab", "cd"], **GREEDY)
    single = client.completions.create(prompt="cd", extra_body={"return_token_ids": True}, **GREEDY)
    assert batch.choices[1].text == single.choices[0].text
    ids = single.choices[0].model_extra["prompt_token_ids"]
    assert client.completions.create(prompt=ids, **GREEDY).choices[0].text == single.choices[0].text


def test_echo_scores_the_prompt(client: OpenAI) -> None:
    choice = client.completions.create(model="tiny", prompt="hello", echo=True, logprobs=1, max_tokens=0).choices[0]
    assert choice.text == "hello"
    assert choice.logprobs.token_logprobs[0] is None
    assert all(logprob < 0 for logprob in choice.logprobs.token_logprobs[1:])
    assert choice.logprobs.text_offset == [0, 1, 2, 3, 4]


def test_embeddings_are_unit_vectors_and_equal_in_both_formats(client: OpenAI, http: httpx.Client) -> None:
    vectors = [item.embedding for item in client.embeddings.create(model="tiny", input=["one", "two"]).data]
    assert all(math.isclose(math.fsum(x * x for x in vector), 1.0, abs_tol=1e-4) for vector in vectors)
    body = {"model": "tiny", "input": "one", "encoding_format": "Base64"}
    raw = base64.b64decode(http.post("/api/v1/embeddings", json=body).json()["data"][0]["embedding"])
    assert list(struct.unpack(f"<{len(raw) // 4}f", raw)) == pytest.approx(vectors[0], abs=1e-5)


def test_adapters_load_answer_and_leave(client: OpenAI, http: httpx.Client, tiny_adapters: tuple[Path, ...]) -> None:
    base = client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content
    for number, path in enumerate(tiny_adapters[:4]):
        assert http.post("/v1/adapters", json={"key": f"a{number}", "path": str(path)}).status_code == 200
    fifth = http.post("/v1/adapters", json={"key": "a4", "path": str(tiny_adapters[4])})
    assert fifth.json()["error"]["code"] == "adapter_limit"
    assert "max_adapters" in fifth.text or "--max-adapters" in fifth.text
    adapted = client.chat.completions.create(messages=MESSAGES, **{**GREEDY, "model": "a1"})
    assert adapted.choices[0].message.content != base
    assert len(list(client.models.list())) == 5
    for number in range(4):
        assert http.delete(f"/v1/adapters/a{number}").status_code == 200
    with pytest.raises(openai.NotFoundError):
        client.chat.completions.create(messages=MESSAGES, **{**GREEDY, "model": "a1"})
    assert client.chat.completions.create(messages=MESSAGES, **GREEDY).choices[0].message.content == base


def test_broken_adapter_is_refused_and_named(http: httpx.Client, tmp_path: Path) -> None:
    (tmp_path / "adapter_config.json").write_text("{")
    response = http.post("/v1/adapters", json={"key": "bad", "path": str(tmp_path)})
    assert response.status_code == 400
    assert str(tmp_path) in response.json()["error"]["message"]


def test_an_adapter_key_that_no_path_can_name_is_refused(http: httpx.Client, tiny_adapters: tuple[Path, ...]) -> None:
    response = http.post("/v1/adapters", json={"key": "a\nb", "path": str(tiny_adapters[0])})
    assert (response.status_code, response.json()["error"]["param"]) == (400, "key")


def test_metrics_count_what_happened(client: OpenAI, http: httpx.Client) -> None:
    client.chat.completions.create(messages=MESSAGES, **GREEDY)
    text = http.get("/metrics").text
    for name in (
        'harmonia_requests_total{model="tiny"',
        'harmonia_generated_tokens_total{model="tiny"',
        'harmonia_ttft_seconds_count{model="tiny"',
        'harmonia_inter_token_seconds_bucket{le="+Inf",model="tiny"',
        'harmonia_queue_length{model="tiny"',
        'harmonia_batch_size_count{model="tiny"',
        'harmonia_cache_occupancy{model="tiny"',
        'harmonia_prefix_hit_tokens_total{model="tiny"',
        'harmonia_prefix_query_tokens_total{model="tiny"',
        'harmonia_evictions_total{model="tiny"',
        'harmonia_preemptions_total{model="tiny"',
        'harmony_ttft_ms_count{model="tiny"',
        'harmony_ttft_timeout_count{model="tiny"',
        'harmony_generation_requests_count{model="tiny"',
        'harmony_request_duration_s_count{model="tiny"',
        'concorde_token_generated_total{model="tiny"',
        'concorde_token_processed_total{model="tiny"',
    ):
        assert name in text, name
