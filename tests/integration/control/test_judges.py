"""Graders at work outside of recipes: judges before all, on completions and on conversations that are brought."""

from __future__ import annotations

import json
import threading
import uuid
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.graphql_client import (
    AddExternalModelInput,
    AddModelInput,
    ExternalModelProviderName,
    ModelProviderDataInput,
    OpenAIProviderDataInput,
)
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from adaptive_sdk.graphql_client.input_types import (
    GraderConfigInput,
    GraderCreateInput,
    JudgeConfigInput,
    PrebuiltConfigInput,
)

from harmonia.config.control import ControlConfig
from tests.integration.control.asking import data
from tests.integration.control.conftest import Plane

Json = dict[str, Any]
PASS = '{"reasoning": "kind", "score": "PASS"}'


class Provider:
    """A model outside that gives the next of some answers, the last one for ever, and keeps what it was asked."""

    def __init__(self) -> None:
        self.answers = [PASS]
        self.asked: list[Json] = []
        provider = self

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                body = json.loads(self.rfile.read(int(self.headers["content-length"])))
                provider.asked.append(body)
                answer = provider.answers.pop(0) if len(provider.answers) > 1 else provider.answers[0]
                choice = {"index": 0, "delta": {"content": answer}, "finish_reason": "stop"}
                lines = f"data: {json.dumps({'choices': [choice]})}\n\ndata: [DONE]\n\n".encode()
                self.send_response(200)
                self.send_header("content-type", "text/event-stream")
                self.send_header("content-length", str(len(lines)))
                self.end_headers()
                self.wfile.write(lines)

            def log_message(self, *_: object) -> None: ...

        self._server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_port}/v1"
        threading.Thread(target=self._server.serve_forever, args=(0.01,), daemon=True).start()

    def close(self) -> None:
        self._server.shutdown()
        self._server.server_close()


@pytest.fixture
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture
def plane(tmp_path: Path) -> Iterator[Plane]:
    """One whose external models may be on this machine."""
    with Plane(ControlConfig(data_dir=tmp_path, external_models={"allow_private": True})) as plane:
        yield plane


@pytest.fixture
def lab(adaptive: Adaptive, provider: Provider) -> Iterator[Adaptive]:
    """A project and a model that judges."""
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    given = OpenAIProviderDataInput(api_key="secret", external_model_id="judge-1", endpoint=provider.url)
    adaptive._gql_client.add_external_model(
        AddExternalModelInput(
            name="judge",
            provider=ExternalModelProviderName.OPEN_AI,
            provider_data=ModelProviderDataInput(open_ai=given),
        )
    )
    yield adaptive
    adaptive.close()


def record(lab: Adaptive, prompt: str, completion: str) -> str:
    made = lab.interactions.create(messages=[{"role": "user", "content": prompt}], completion=completion)
    return str(made.completion_id)


def grade(plane: Plane, grader: str, body: Json) -> httpx.Response:
    return httpx.post(
        f"{plane.url}/api/v1/projects/lab/graders/{grader}/grade",
        json=body,
        headers={"Authorization": f"Bearer {plane.api_key}"},
        timeout=60,
    )


def grades(plane: Plane, grader: str, body: Json) -> list[Json]:
    answer = grade(plane, grader, body)
    assert answer.status_code == 200, answer.text
    found: list[Json] = answer.json()["grades"]
    return found


def test_a_judge_of_the_published_sdk_scores_interactions(plane: Plane, lab: Adaptive, provider: Provider) -> None:
    example = {"input": [{"role": "user", "content": "Hi"}], "output": "Go away", "passes": False, "reasoning": "rude"}
    lab.graders.create.binary_judge(key="polite", criteria="It's polite.", judge_model="judge", examples=[example])
    first, second = record(lab, "Hello <b>", "Good day"), record(lab, "Bye", "Whatever")
    provider.answers = [PASS, '{"reasoning": "curt", "score": "FAIL"}']
    (one,) = grades(plane, "polite", {"completions": [first]})
    (two,) = grades(plane, "polite", {"completions": [second]})
    assert (one["value"], one["reasoning"], one["error"], one["ignored"]) == (1.0, "kind", None, False)
    assert (two["value"], two["completion_id"]) == (0.0, second)
    system, user = provider.asked[0]["messages"]
    assert system["role"] == "system" and "### ANNOTATION 0 ###" in system["content"]
    assert "Go away" in system["content"] and '"score":"FAIL"' in system["content"]
    assert "Hello <b>" in user["content"] and "Good day" in user["content"] and "{{" not in user["content"]
    assert "It's polite." in user["content"]
    assert provider.asked[0]["response_format"]["type"] == "json_schema"
    assert provider.asked[0]["temperature"] == 0
    item = lab.interactions.get(first)
    assert item is not None
    (score,) = item.direct_scores
    assert (score.metric.key if score.metric else None, score.value, score.reason) == ("polite", 1.0, "kind")
    provider.answers = ['{"reasoning": "on second thought", "score": "FAIL"}']
    grades(plane, "polite", {"completions": [first]})
    again = lab.interactions.get(first)
    assert again is not None
    assert [(score.value, score.reason) for score in again.direct_scores] == [(0.0, "on second thought")]
    query = 'query ($i: UUID!) { completion(project: "lab", id: $i) { directScores { source } } }'
    assert data(plane, query, {"i": first})["completion"]["directScores"] == [{"source": "GRADER"}]


def test_prebuilt_judges_and_what_they_leave_out(plane: Plane, lab: Adaptive, provider: Provider) -> None:
    lab.graders.create.prebuilt_judge(key="faithful", type="FAITHFULNESS", judge_model="judge")
    config = GraderConfigInput(prebuilt=PrebuiltConfigInput(key="ANSWER_RELEVANCY", model="judge"))
    new = GraderCreateInput(name="Relevant", key="relevant", graderType="PREBUILT", graderConfig=config)
    lab._gql_client.create_grader("lab", new)
    thread = {"messages": [{"role": "user", "content": "Capital of France?"}], "completion": "Paris"}
    provider.answers = [PASS, '{"reasoning": "no context", "score": "NA"}', "I would say PASS", "still words"]
    assert [item["value"] for item in grades(plane, "faithful", {"threads": [thread]})] == [1.0]
    (left,) = grades(plane, "relevant", {"threads": [thread]})
    assert (left["value"], left["ignored"], left["error"]) == (None, True, "no context")
    (unread,) = grades(plane, "relevant", {"threads": [thread]})
    assert unread["value"] is None and not unread["ignored"] and "the last" in unread["error"]
    asked = [body["messages"][-1]["content"] for body in provider.asked]
    assert "context that it was given" not in asked[1] and "addresses what was asked" in asked[1]
    assert "cannot be read" in asked[3]
    (no_answer,) = grades(plane, "faithful", {"threads": [[{"role": "user", "content": "?"}]]})
    assert "assistant turn" in no_answer["error"]


def test_templates_are_read_when_a_judge_is_made(lab: Adaptive) -> None:
    for template, says in (("{{criterea}}", "userTemplate.*no 'criterea'"), ("{{#if x}}", "does not close")):
        config = JudgeConfigInput(
            model="judge", criteria="Short?", examples=[], systemTemplate="Judge.", userTemplate=template
        )
        new = GraderCreateInput(
            name="x", key="x", graderType="JUDGE", graderConfig=GraderConfigInput(judge=config), metric=None
        )
        with pytest.raises(GraphQLClientGraphQLMultiError, match=says):
            lab._gql_client.create_grader("lab", new)


def test_functions_run_and_others_say_why_not(plane: Plane, lab: Adaptive, tiny: Path) -> None:
    length = "async def grade(thread):\n    if not thread.last_content(): raise IgnoreGradeException('empty')\n"
    for key in ("length", "style/length"):
        lab.graders.create.function(key=key, fn=length + "    return len(thread.last_content())")
    lab.graders.create.custom(key="own", description="In a recipe")
    lab._gql_client.add_model(AddModelInput(path=str(tiny), name="tiny", key="tiny"))
    lab.graders.create.binary_judge(key="offline", criteria="Short?", judge_model="tiny")
    first, empty = record(lab, "Hello", "Good day"), record(lab, "Hello", "")
    found = grades(plane, "length", {"completions": [first, empty]})
    assert [(item["value"], item["ignored"]) for item in found] == [(8.0, False), (None, True)]
    assert found[1]["score_id"] is None
    assert grades(plane, "style/length", {"completions": [first]})[0]["value"] == 8.0
    (offline,) = grades(plane, "offline", {"completions": [first]})
    assert "not online; deploy it" in offline["error"]
    for grader, body, status, says in (
        ("own", {"completions": [first]}, 400, "only a recipe can run"),
        ("none", {"completions": [first]}, 404, "does not exist"),
        ("length", {}, 400, "either completions or threads"),
        ("length", {"completions": [], "threads": []}, 400, "either"),
        ("length", {"completions": []}, 400, "got 0"),
        ("length", {"completions": [first, first]}, 400, "twice"),
        ("length", {"completions": [str(uuid.uuid4())]}, 404, "does not exist"),
        ("length", {"threads": ["x", 3]}, 400, "list of turns"),
        ("length", {"completion": first}, 400, "completion"),
    ):
        answer = grade(plane, grader, body)
        assert (answer.status_code, says in answer.text) == (status, True), answer.text


def test_a_deployed_model_judges(plane: Plane, lab: Adaptive, tiny: Path) -> None:
    lab._gql_client.add_model(AddModelInput(path=str(tiny), name="tiny", key="tiny"))
    lab.models.add_to_project("tiny", "lab")
    lab.models.deploy("tiny", wait=True)
    config = GraderConfigInput(
        judge=JudgeConfigInput(
            model="tiny", criteria="Short?", examples=[], systemTemplate="", userTemplate="{{criteria}} {{completion}}"
        )
    )
    new = GraderCreateInput(name="Short", key="short", graderType="JUDGE", graderConfig=config)
    lab._gql_client.create_grader("lab", new)
    thread = {"messages": [{"role": "user", "content": "Hello"}], "completion": "Good day"}
    (found,) = grades(plane, "short", {"threads": [thread]})
    # A random model may never end its reasoning; then asking again is too long, or the second answer too.
    assert found["value"] in (0.0, 1.0) or found["ignored"] or "read" in found["error"] or "shorten" in found["error"]
