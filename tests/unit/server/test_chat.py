"""Chat completions: shapes that OpenAI's clients and `adaptive_sdk` accept."""

import json
import uuid
from collections.abc import AsyncIterator

import httpx
import pytest
from openai import AsyncOpenAI

from harmonia.protocol.messages import ChatPrompt, Failed, Generate, ToolCall
from tests.unit.server.conftest import Served
from tests.unit.server.scripted import Script

WEATHER = {"name": "weather", "parameters": {"type": "object", "properties": {"city": {"type": "string"}}}}
TOOLS = [{"type": "function", "function": WEATHER}]


def chunks(response: httpx.Response) -> list[dict]:
    """The JSON events of a stream, whose end marker must be there."""
    events = [line.removeprefix("data: ") for line in response.text.split("\n\n") if line]
    assert events[-1] == "[DONE]"
    return [json.loads(event) for event in events[:-1]]


@pytest.fixture
async def openai(served: Served) -> AsyncIterator[AsyncOpenAI]:
    url = f"http://127.0.0.1:{served.port}/v1"
    async with AsyncOpenAI(base_url=url, api_key="none", max_retries=0) as client:
        yield client


async def test_response_has_both_systems_fields(served: Served) -> None:
    body = (await served.chat()).json()
    choice = body["choices"][0]
    assert body["object"] == "chat.completion"
    assert uuid.UUID(body["session_id"])
    assert uuid.UUID(choice["completion_id"])
    assert choice["model"] == "tiny"
    assert choice["message"] == {"id": choice["completion_id"], "role": "assistant", "content": "Paris is nice"}
    assert choice["finish_reason"] == "stop"
    assert body["usage"] == {
        "prompt_tokens": 5,
        "completion_tokens": 3,
        "total_tokens": 8,
        "prompt_tokens_details": {"cached_tokens": 2},
    }


@pytest.mark.parametrize("prefix", ["/v1", "/api/v1"])
async def test_every_delta_has_id_role_and_content(served: Served, prefix: str) -> None:
    body = {"model": "tiny", "messages": [{"role": "user", "content": "hi"}], "stream": True}
    response = await served.http.post(f"{prefix}/chat/completions", json=body)
    events = chunks(response)
    assert response.headers["content-type"].startswith("text/event-stream")
    assert [event["choices"][0]["delta"]["content"] for event in events] == ["Paris", " is", " nice"]
    assert all(event["choices"][0]["delta"]["role"] == "assistant" for event in events)
    assert all(event["choices"][0]["delta"]["id"] for event in events)
    assert [event["choices"][0]["finish_reason"] for event in events] == [None, None, "stop"]


async def test_usage_comes_in_a_last_chunk_with_no_choices(served: Served) -> None:
    events = chunks(await served.chat(stream=True, stream_options={"include_usage": True}))
    assert events[-1]["choices"] == []
    assert events[-1]["usage"]["prompt_tokens_details"]["cached_tokens"] == 2


async def test_session_is_kept_as_given(served: Served) -> None:
    assert (await served.chat(session_id="talk-7")).json()["session_id"] == "talk-7"
    assert served.worker.of(Generate)[0].session_id == "talk-7"


async def test_openai_client_reads_an_answer_and_several_choices(openai: AsyncOpenAI) -> None:
    answer = await openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], n=2, logprobs=True, top_logprobs=1
    )
    assert [choice.message.content for choice in answer.choices] == ["Paris is nice"] * 2
    assert answer.choices[1].logprobs.content[0].top_logprobs[0].token == "Paris"


async def test_openai_streaming_helper_merges_deltas(openai: AsyncOpenAI) -> None:
    messages = [{"role": "user", "content": "hi"}]
    async with openai.chat.completions.stream(model="tiny", messages=messages) as stream:
        final = await stream.get_final_completion()
    assert final.choices[0].message.role == "assistant"
    assert final.choices[0].message.content == "Paris is nice"


async def test_sampling_settings_reach_the_worker(served: Served) -> None:
    fields = {"temperature": 0, "top_p": 0.5, "top_k": 3, "min_p": 0.1, "seed": 7, "stop": "x", "ignore_eos": True}
    more = {"logit_bias": {"5": -1.5}, "max_completion_tokens": 9, "max_tokens": 4, "stop_token_ids": [3]}
    await served.chat(**fields, **more, presence_penalty=1, repetition_penalty=1.5, min_tokens=2)
    sampling = served.worker.of(Generate)[0].sampling
    assert (sampling.temperature, sampling.top_p, sampling.top_k, sampling.min_p) == (0, 0.5, 3, 0.1)
    assert (sampling.seed, sampling.stop, sampling.max_tokens, sampling.min_tokens) == (7, ("x",), 9, 2)
    assert (sampling.logit_bias, sampling.stop_token_ids, sampling.ignore_eos) == ({5: -1.5}, (3,), True)


async def test_messages_reach_the_template_as_text(served: Served) -> None:
    parts = [{"type": "text", "text": "a"}, {"type": "text", "text": "b"}]
    await served.chat(messages=[{"role": "developer", "content": "be kind"}, {"role": "user", "content": parts}])
    prompt = served.worker.of(Generate)[0].prompt
    assert isinstance(prompt, ChatPrompt)
    assert prompt.messages == ({"role": "system", "content": "be kind"}, {"role": "user", "content": "ab"})


async def test_tool_calls_come_with_empty_content(served: Served, openai: AsyncOpenAI) -> None:
    call = ToolCall(id="c1", name="weather", arguments='{"city": "Rome"}')
    served.worker.script = Script(words=("",), finish_reason="tool_calls", tool_calls=(call,))
    answer = await openai.chat.completions.create(
        model="tiny", messages=[{"role": "user", "content": "hi"}], tools=TOOLS
    )
    message = answer.choices[0].message
    assert (message.content, message.tool_calls[0].function.name) == ("", "weather")
    assert served.worker.of(Generate)[0].parse_tools
    events = chunks(await served.chat(tools=TOOLS, stream=True))
    assert events[-1]["choices"][0]["delta"]["tool_calls"][0]["index"] == 0


@pytest.mark.parametrize("stream", [False, True])
async def test_required_call_is_constrained_and_parsed(served: Served, stream: bool) -> None:
    served.worker.script = Script(words=('{"name": "weather",', ' "arguments": {"city": "Rome"}}'))
    response = await served.chat(tools=TOOLS, tool_choice="required", stream=stream)
    choice = (chunks(response)[-1] if stream else response.json())["choices"][0]
    message = choice["delta" if stream else "message"]
    assert (choice["finish_reason"], message["content"]) == ("tool_calls", "")
    assert message["tool_calls"][0]["function"] == {"name": "weather", "arguments": '{"city": "Rome"}'}
    constraint = served.worker.of(Generate)[0].constraint
    assert json.loads(constraint.source)["anyOf"][0]["properties"]["name"] == {"const": "weather"}


async def test_named_call_is_the_arguments_alone(served: Served) -> None:
    served.worker.script = Script(words=('{"city"', ': "Rome"}'))
    choice = {"type": "function", "function": {"name": "weather"}}
    answer = (await served.chat(tools=TOOLS, tool_choice=choice)).json()["choices"][0]
    assert answer["finish_reason"] == "stop"
    assert answer["message"]["tool_calls"][0]["function"]["arguments"] == '{"city": "Rome"}'


@pytest.mark.parametrize("choice", ["required", {"type": "function", "function": {"name": "now"}}])
async def test_a_function_without_parameters_is_called_without_arguments(served: Served, choice: str | dict) -> None:
    await served.chat(tools=[{"type": "function", "function": {"name": "now"}}], tool_choice=choice)
    schema = json.loads(served.worker.of(Generate)[0].constraint.source)
    arguments = schema["anyOf"][0]["properties"]["arguments"] if "anyOf" in schema else schema
    assert arguments == {"type": "object", "properties": {}, "additionalProperties": False}


async def test_tool_switches_of_the_seed_system(served: Served) -> None:
    assert (await served.chat(tools=[{"id": "search", "enabled": False}])).status_code == 200
    refused = await served.chat(tools=[{"id": "search", "enabled": True}])
    assert refused.status_code == 400
    assert "'search'" in refused.json()["error"]["message"]


async def test_response_format_becomes_a_constraint(served: Served) -> None:
    schema = {"type": "object", "properties": {"a": {"type": "integer"}}}
    await served.chat(response_format={"type": "json_schema", "json_schema": {"name": "x", "schema": schema}})
    await served.chat(response_format={"type": "json_object"})
    first, second = (message.constraint for message in served.worker.of(Generate))
    assert (first.kind, json.loads(first.source)) == ("json_schema", schema)
    assert second.kind == "json_object"


async def test_token_ids_on_request(served: Served) -> None:
    body = (await served.chat(return_token_ids=True)).json()
    assert (body["prompt_token_ids"], body["choices"][0]["token_ids"]) == ([7, 8], [0, 1, 2])
    events = chunks(await served.chat(return_token_ids=True, stream=True))
    assert events[0]["prompt_token_ids"] == [7, 8]
    assert [event["choices"][0]["token_ids"] for event in events] == [[0], [1], [2]]


async def test_error_in_mid_stream_is_an_event_and_the_end(served: Served) -> None:
    served.worker.script = Script(failure=Failed(id="", code="worker_lost", message="gone"), fail_after=2)
    text = (await served.chat(stream=True)).text
    last = json.loads(text.split("\n\n")[-2].removeprefix("data: "))
    assert last["error"]["code"] == "worker_lost"
    assert "[DONE]" not in text
