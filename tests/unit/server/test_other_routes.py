"""Completions, embeddings, models, adapters, sessions, keys, metrics."""

import base64
import json
import math
import struct

import httpx
import pytest

from harmonia.config.server import ServerConfig
from harmonia.protocol.messages import CloseSession, Generate, TextPrompt, TokenPrompt
from tests.unit.server.conftest import Serve, Served


async def complete(served: Served, **fields: object) -> httpx.Response:
    return await served.http.post("/v1/completions", json={"model": "tiny", "prompt": "abcd", **fields})


async def test_batches_of_prompts_keep_their_order(served: Served) -> None:
    body = (await complete(served, prompt=["a", [1, 2]], n=2)).json()
    assert [choice["index"] for choice in body["choices"]] == [0, 1, 2, 3]
    assert body["usage"]["prompt_tokens"] == 10
    prompts = [message.prompt for message in served.worker.of(Generate)]
    assert prompts == [TextPrompt(text="a"), TokenPrompt(token_ids=(1, 2))]


async def test_echo_with_logprobs_covers_prompt_and_answer(served: Served) -> None:
    choice = (await complete(served, echo=True, logprobs=1)).json()["choices"][0]
    assert choice["text"] == "abcdParis is nice"
    assert choice["logprobs"]["tokens"] == ["ab", "cd", "Paris", " is", " nice"]
    assert choice["logprobs"]["token_logprobs"] == [None, -0.5, -0.5, -0.5, -0.5]
    assert choice["logprobs"]["text_offset"] == [0, 2, 4, 9, 12]


async def test_echo_of_tokens_and_no_answer(served: Served) -> None:
    body = (await complete(served, prompt=[7, 8], echo=True, max_tokens=0)).json()
    assert (body["choices"][0]["text"], body["usage"]["completion_tokens"]) == ("abcd", 0)
    assert served.worker.of(Generate)[0].sampling.max_tokens == 1


async def test_streamed_completion(served: Served) -> None:
    text = (await complete(served, stream=True, echo=True)).text
    events = [json.loads(event.removeprefix("data: ")) for event in text.split("\n\n")[:-2]]
    assert [event["choices"][0]["text"] for event in events] == ["abcdParis", " is", " nice"]
    assert events[-1]["choices"][0]["finish_reason"] == "stop"
    assert text.endswith("data: [DONE]\n\n")


@pytest.mark.parametrize(
    ("fields", "param"),
    [
        ({"prompt": []}, "prompt"),
        ({"prompt": [[]]}, "prompt[0]"),
        ({"prompt": ["a", 3]}, "prompt[1]"),
        ({"prompt": [5000]}, "prompt"),
        ({"prompt": [-1]}, "prompt[0]"),
        ({"max_tokens": 0}, "max_tokens"),
        ({"suffix": "x"}, "suffix"),
        ({"best_of": 3}, "best_of"),
    ],
)
async def test_bad_completions_name_the_field(served: Served, fields: dict, param: str) -> None:
    response = await complete(served, **fields)
    assert (response.status_code, response.json()["error"]["param"]) == (400, param), response.text


async def test_embeddings_in_both_formats_and_shortened(served: Served) -> None:
    async def embed(**fields: object) -> dict:
        response = await served.http.post("/api/v1/embeddings", json={"model": "tiny", "input": "a", **fields})
        return response.json()

    numbers = (await embed(encoding_format="Float"))["data"][0]["embedding"]
    text = (await embed(encoding_format="Base64"))["data"][0]["embedding"]
    assert list(struct.unpack("<4f", base64.b64decode(text))) == numbers
    short = (await embed(dimensions=1))["data"][0]["embedding"]
    assert math.isclose(short[0], 1.0)
    assert (await embed(dimensions=9))["error"]["param"] == "dimensions"


async def test_adapters_come_and_go(served: Served) -> None:
    loaded = await served.http.post("/v1/adapters", json={"key": "law", "path": "/x"})
    assert loaded.json()["parent"] == "tiny"
    assert [model["id"] for model in (await served.http.get("/v1/models")).json()["data"]] == ["tiny", "law"]
    assert (await served.chat(model="law")).status_code == 200
    assert (await served.http.delete("/v1/adapters/law")).json()["deleted"]
    assert (await served.chat(model="law")).status_code == 404
    assert (await served.http.delete("/v1/adapters/tiny")).status_code == 404
    refused = await served.http.post("/v1/adapters", json={"key": "fifth", "path": "/broken"})
    assert (refused.status_code, refused.json()["error"]["code"]) == (409, "adapter_limit")


async def test_sessions_close(served: Served) -> None:
    assert (await served.http.delete("/v1/sessions/talk-7")).status_code == 200
    assert served.worker.of(CloseSession)[0].session_id == "talk-7"


async def test_keys_guard_everything_but_health(serve: Serve) -> None:
    async with serve(ServerConfig(api_keys=("k1", "k2"))) as served:
        assert (await served.http.get("/health")).status_code == 200
        assert (await served.http.get("/v1/models")).status_code == 401
        wrong = await served.http.get("/v1/models", headers={"authorization": "Bearer k3"})
        assert wrong.json()["error"]["code"] == "invalid_api_key"
        right = await served.http.get("/v1/models", headers={"authorization": "Bearer k2"})
        assert right.status_code == 200


async def test_metrics_have_our_names_and_the_seed_systems(served: Served) -> None:
    await served.chat()
    text = (await served.http.get("/metrics")).text
    for line in (
        'harmonia_queue_length{model="tiny",replica="r1"} 1.0',
        'harmonia_evictions_total{model="tiny",replica="r1"} 3.0',
        'harmonia_generated_tokens_total{model="tiny",replica="r1"} 9.0',
        'harmonia_ttft_seconds_bucket{le="0.1",model="tiny",replica="r1"} 1.0',
        'harmony_ttft_ms_bucket{le="100.0",model="tiny",pool="default",replica="r1"} 1.0',
        'harmony_ttft_timeout_count{model="tiny",pool="default",replica="r1"} 1.0',
        'harmony_generation_requests_count{model="tiny",pool="default",replica="r1"} 2.0',
        'harmony_request_duration_s_count{model="tiny",pool="default"} 1.0',
        'concorde_token_generated_total{model="tiny",replica="r1"} 9.0',
        'concorde_token_processed_total{model="tiny",replica="r1"} 5.0',
        'http_route="/v1/chat/completions"',
    ):
        assert line in text, line
