"""Graders through the published SDK, its reward server, and servers that misbehave."""

from __future__ import annotations

import asyncio
import json
import socket
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import closing
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any, cast

import httpx
import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.external import EmptyMetadata, Request, Response, RewardServer, ServerInfo
from adaptive_sdk.graphql_client import AddModelInput, GraderUpdateInput, RemoteEnvCreate
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from adaptive_sdk.graphql_client.input_types import CustomConfigInput, GraderConfigInput

from harmonia.client.data import PrebuiltConfigKey
from harmonia.client.recipe.http_plane import HttpControlPlane
from harmonia.config.control import ControlConfig, Graders
from harmonia.errors import EntityNotFoundError, InvalidRequestError, PermissionDeniedError, UnavailableError
from harmonia.graders.exceptions import IgnoreGradeException
from harmonia.server.db.graders import Grader
from harmonia.server.services.graders.graders import Graders as Service
from harmonia.server.services.graders.judging import Judges
from harmonia.server.services.models.asking import Asking
from harmonia.server.services.outbound import AddressGuard, ForbiddenAddressError, Outbound, OutboundError
from harmonia.threads import StringThread
from tests.integration.control.asking import data
from tests.integration.control.conftest import Plane, on_both

THREAD = StringThread([("user", "Hello"), ("assistant", "Good day")])
LENGTH = "async def grade(thread) -> float:\n    return float(len(thread.last_content()))"


class LengthServer(RewardServer[EmptyMetadata]):
    """The vendor's server: what it answers is what people's servers answer."""

    def __init__(self, port: int) -> None:
        super().__init__(port, EmptyMetadata, blocking=False)

    async def score(self, request: Request) -> Response:  # type: ignore[override]
        return Response(reward=len(request.turns[-1].content), metadata={"words": 2})

    async def info(self) -> ServerInfo:
        return ServerInfo(version="1.2", name="Lengths", description="How long answers are")


@pytest.fixture
def lengths() -> Iterator[str]:
    """Where the vendor's server listens."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port = probe.getsockname()[1]
    server = LengthServer(port)
    while not server.server.started:
        threading.Event().wait(0.01)
    yield f"http://127.0.0.1:{port}"
    server.server.stop()


@pytest.fixture
def plane(tmp_path: Path, database_address: str) -> Iterator[Plane]:
    """One whose graders may be on this machine."""
    settings = Graders(allow_private=True)
    with Plane(ControlConfig(data_dir=tmp_path, db={"url": database_address}, graders=settings)) as plane:
        yield plane


@pytest.fixture
def lab(adaptive: Adaptive) -> Adaptive:
    adaptive.projects.create("lab", "Lab")
    adaptive.set_default_project("lab")
    return adaptive


def add_judge_model(adaptive: Adaptive) -> str:
    model = adaptive.models.add_external(
        name="judge", external_model_id="some-model", api_key="sk-secret", provider="open_ai"
    )
    return str(model.key)


def test_functions_are_checked_before_they_are_graders(lab: Adaptive) -> None:
    made = lab.graders.create.function(key="length", fn=LENGTH, description="How long it is")
    assert (made.key, made.grader_type.value, made.locked) == ("length", "FUNCTION", False)
    assert made.grader_config.source_code == LENGTH
    assert (made.metric.key, made.metric.kind.value, made.project.key) == ("length", "SCALAR", "lab")
    with pytest.raises(ValueError, match="signature: grade takes one argument"):
        lab.graders.create.function(key="wrong", fn="async def grade(a, b): return 1.0")
    with pytest.raises(ValueError, match="definition"):
        lab.graders.create.function(key="wrong", fn="def grade(thread): return 1.0")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="taken by another grader"):
        lab.graders.create.function(key="length", fn=LENGTH)
    assert [item.key for item in lab.graders.list()] == ["length"]


def test_a_function_is_tried_on_the_sample_that_the_caller_brings(lab: Adaptive) -> None:
    wants = "async def grade(thread): return float(thread.metadata['wanted'] == thread.last_content())"
    validate = lab._gql_client.validate_function_grader
    assert not validate(project="lab", code=wants).validate_function_grader.valid
    sample = {"messages": [{"role": "user", "content": "?"}], "completion": "x", "metadata": {"wanted": "x"}}
    found = validate(project="lab", code=wants, test_sample=sample).validate_function_grader
    assert found.valid
    assert found.warnings == []
    with pytest.raises(GraphQLClientGraphQLMultiError, match="turn 0 needs a role"):
        validate(project="lab", code=wants, test_sample=[{"role": "user"}])


@on_both
def test_judges_name_a_model(lab: Adaptive) -> None:
    model = add_judge_model(lab)
    example = {"input": [{"role": "user", "content": "?"}], "output": "!", "passes": True, "reasoning": "short"}
    made = lab.graders.create.binary_judge(
        key="polite", criteria="Is it polite?", judge_model=model, examples=[example]
    )
    assert made.grader_config.judge_criteria == "Is it polite?"
    assert made.grader_config.model.key == model
    assert [(item.output, item.pass_, item.reasoning) for item in made.grader_config.examples] == [("!", True, "short")]
    assert made.metric.kind.value == "BOOL"
    prebuilt = lab.graders.create.prebuilt_judge(key="faithful", type="FAITHFULNESS", judge_model=model)
    assert prebuilt.grader_config.prebuilt_criteria.key.value == "FAITHFULNESS"
    assert prebuilt.metric.key == "faithful"
    with pytest.raises(Exception, match=r"(?i)model"):
        lab.graders.create.binary_judge(key="other", criteria="?", judge_model="nobody")


GRADES = """
from harmonia.client import StringThread
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.graders import Grader

class Config(InputConfig):
    grader: Grader

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    grader = await config.grader.load(ctx)
    grade = await grader.grade(StringThread([("user", "Hello"), ("assistant", "Good day")]))
    print("graded", grade.grader_key, grade.value, flush=True)
"""


def test_a_recipe_grades_with_a_grader_of_its_project(plane: Plane, lab: Adaptive, tmp_path: Path) -> None:
    lab.graders.create.function(key="length", fn=LENGTH)
    (tmp_path / "grades.py").write_text(GRADES)
    lab.recipes.upload(str(tmp_path / "grades.py"))
    told = {key: end_of(plane, lab, key) for key in ("length", "nobody")}
    assert told["length"][0] == "COMPLETED", told["length"]
    assert "graded length 8.0" in told["length"][1]
    assert told["nobody"][0] == "FAILED"
    assert "'nobody' does not exist" in told["nobody"][1]


def end_of(plane: Plane, lab: Adaptive, grader: str) -> tuple[str, str]:
    """How the recipe ends with a grader, and what it wrote."""
    job = lab.jobs.run("grades", 0, args={"grader": grader})
    end = time.monotonic() + 60
    while (status := lab.jobs.get(job.id).status.value) in ("PENDING", "RUNNING"):
        assert time.monotonic() < end
        time.sleep(0.1)
    log = httpx.get(f"{plane.url}/api/v1/jobs/{job.id}/logs", headers={"Authorization": f"Bearer {plane.api_key}"})
    return status, log.text


def test_recipes_read_graders_of_every_kind(plane: Plane, lab: Adaptive, lengths: str, tiny: Path) -> None:
    lab._gql_client.add_model(AddModelInput(path=str(tiny), name="Tiny", key="tiny"))
    example = {"input": [{"role": "user", "content": "?"}], "output": "!", "passes": True, "reasoning": "short"}
    lab.graders.create.binary_judge(key="polite", criteria="Is it polite?", judge_model="tiny", examples=[example])
    config = 'graderType: PREBUILT, graderConfig: {prebuilt: {model: "tiny", key: ANSWER_RELEVANCY}}'
    made = f'createGrader(project: "lab", input: {{name: "Relevant", key: "relevant", {config}}})'
    data(plane, f"mutation {{ {made} {{ id }} }}")
    lab.graders.create.prebuilt_judge(key="outside", type="FAITHFULNESS", judge_model=add_judge_model(lab))
    lab.graders.create.external_endpoint(key="far", url=lengths)
    lab.graders.create.custom(key="own", description="Mine")
    control = HttpControlPlane(plane.url, plane.api_key, "lab")
    read = {key: asyncio.run(control.get_grader_config(key)) for key in ("polite", "relevant", "outside", "far", "own")}
    again = asyncio.run(control.get_grader_config("polite"))
    thread = {"messages": [{"role": "user", "content": "?"}, {"role": "assistant", "content": "four"}]}
    (verdict,) = asyncio.run(control.grade("far", [thread]))
    assert (verdict.value, verdict.reasoning, verdict.error) == (4.0, '{"words": 2}', None)
    with pytest.raises(EntityNotFoundError, match="'nobody' does not exist"):
        asyncio.run(control.grade("nobody", [thread]))
    control.close()
    account = lab.users.create_service_account(name="bot", teams_with_role=[("default", "read-only")])
    stranger = HttpControlPlane(plane.url, str(account.api_key), "lab")
    with pytest.raises(PermissionDeniedError, match=r"HTTP 403 .*lacks the permission 'project:infer'"):
        asyncio.run(stranger.grade("far", [thread]))
    stranger.close()
    judge = read["polite"].config
    assert (judge.type, judge.model_key, judge.model_uri) == ("Judge", "tiny", "model_registry://tiny")
    assert (judge.criteria, judge.examples[0].pass_, judge.examples[0].input[0].content) == ("Is it polite?", True, "?")
    assert again == read["polite"]
    assert read["relevant"].config.prebuilt_config_key is PrebuiltConfigKey.AnswerRelevancy
    assert (read["outside"].config.model_key, read["outside"].config.model_uri) == ("judge", None)
    assert (read["far"].config.url, read["far"].config.version) == (lengths, "1.2")
    assert (read["own"].config.type, read["own"].config.description) == ("Custom", "Mine")


def test_locked_graders_stay_as_they_are(lab: Adaptive) -> None:
    lab.graders.create.custom(key="mine", description="In a recipe")
    assert lab.graders.lock(grader_key="mine", locked=True).locked
    update = lab._gql_client.update_grader
    change = GraderUpdateInput(name="Other", graderConfig=GraderConfigInput(custom=CustomConfigInput(description="b")))
    for attempt in (
        lambda: update(project="lab", id="mine", input=change),
        lambda: lab.graders.delete(grader_key="mine"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match="unlock it first"):
            attempt()
    lab.graders.lock(grader_key="mine", locked=False)
    changed = update(project="lab", id="mine", input=change).update_grader
    assert (changed.name, changed.grader_config.grader_description) == ("Other", "b")
    assert changed.updated_at >= changed.created_at
    assert lab.graders.delete(grader_key="mine")
    assert lab.graders.list() == []


def test_an_unknown_grader_is_an_error_and_a_known_one_found_by_id_and_key(lab: Adaptive) -> None:
    made = lab.graders.create.custom(key="mine")
    for name in ("mine", str(made.id)):
        found = lab.graders.get(grader_key=name)
        assert found is not None and found.id == made.id
    with pytest.raises(Exception, match="Grader 'nothing' does not exist"):
        lab.graders.get(grader_key="nothing")


@on_both
def test_a_grader_made_anew_goes_on_with_its_metric(lab: Adaptive) -> None:
    first = lab.graders.create.custom(key="mine")
    lab.graders.delete(grader_key="mine")
    assert lab.graders.create.custom(key="mine").metric.id == first.metric.id


def test_only_those_who_may_make_graders(lab: Adaptive, adaptive_as: Callable[[str], Adaptive]) -> None:
    lab.graders.create.custom(key="mine")
    account = lab.users.create_service_account(name="bot", teams_with_role=[("default", "read-only")])
    bot = adaptive_as(account.api_key)
    bot.set_default_project("lab")
    assert [item.key for item in bot.graders.list()] == ["mine"]
    for attempt in (
        lambda: bot.graders.create.custom(key="other"),
        lambda: bot.graders.create.function(key="other", fn=LENGTH),
        lambda: bot.graders.delete(grader_key="mine"),
        lambda: bot.graders.test_external_endpoint(url="http://127.0.0.1:1"),
    ):
        with pytest.raises(GraphQLClientGraphQLMultiError, match="metric:create"):
            attempt()


@on_both
def test_servers_outside_are_asked_what_they_are(lab: Adaptive, lengths: str) -> None:
    online = lab.graders.test_external_endpoint(url=lengths)
    assert (online.name, online.version) == ("Lengths", "1.2")
    offline = lab.graders.test_external_endpoint(url="http://127.0.0.1:1")
    assert "cannot be reached" in offline.error
    made = lab.graders.create.external_endpoint(key="far", url=f"{lengths}/")
    config = made.grader_config
    assert (config.url, config.version, config.description) == (lengths, "1.2", "How long answers are")
    with pytest.raises(GraphQLClientGraphQLMultiError, match="see whether its server is up"):
        lab.graders.create.external_endpoint(key="gone", url="http://127.0.0.1:1")
    gql = lab._gql_client
    added = gql.add_remote_env(RemoteEnvCreate(url=lengths)).add_remote_env
    assert (added.key, added.status.value) == ("lengths", "ONLINE")
    assert added.metadata_schema is not None
    assert [item.id for item in gql.list_remote_envs().remote_envs] == [added.id]
    assert gql.remove_remote_env("lengths").remove_remote_env == "lengths"
    assert gql.list_remote_envs().remote_envs == []


# ---------------------------------------------------------------------------------------------- grading


@pytest.fixture
async def service(database: Any) -> Any:
    settings = Graders(allow_private=True, remote_seconds=1, remote_batch=4, seconds=2)
    service = Service(settings, database, Judges(cast(Asking, None)))
    yield service
    await service.close()


def remote(url: str) -> Grader:
    return Grader(key="far", kind="REMOTE", config={"url": url})


async def test_conversations_are_graded(service: Service, lengths: str) -> None:
    grade = await service.grade(Grader(key="length", kind="FUNCTION", config={"source_code": LENGTH}), THREAD)
    assert (grade.value, grade.grader_key) == (8.0, "length")
    threads = [StringThread([("user", "?"), ("assistant", "x" * size)]) for size in range(30)]
    grades = await service.grade_all(remote(lengths), threads)
    assert [item.value for item in grades] == list(range(30))
    assert grades[0].reasoning == '{"words": 2}'


async def test_grades_that_do_not_come_say_why(service: Service) -> None:
    skips = "async def grade(thread): raise IgnoreGradeException('empty')"
    with pytest.raises(IgnoreGradeException, match="empty"):
        await service.grade(Grader(key="skips", kind="FUNCTION", config={"source_code": skips}), THREAD)
    fails = "async def grade(thread): return 1 / 0"
    with pytest.raises(InvalidRequestError, match=r"'fails' failed: ZeroDivisionError.*mend its function"):
        await service.grade(Grader(key="fails", kind="FUNCTION", config={"source_code": fails}), THREAD)
    with pytest.raises(InvalidRequestError, match="only a recipe can run"):
        await service.grade(Grader(key="own", kind="CUSTOM", config={}), THREAD)


Answer = tuple[int, dict[str, str], bytes]


@pytest.fixture
def scripted() -> Iterator[Callable[..., str]]:
    """Servers that answer each request with the next of some answers, the last one for ever."""
    servers: list[ThreadingHTTPServer] = []

    def serve(*answers: Answer) -> str:
        left = list(answers)

        class Handler(BaseHTTPRequestHandler):
            def do_POST(self) -> None:
                self.rfile.read(int(self.headers["content-length"] or 0))
                status, headers, body = left.pop(0) if len(left) > 1 else left[0]
                self.send_response(status)
                for name, value in {**headers, "content-length": str(len(body))}.items():
                    self.send_header(name, value)
                self.end_headers()
                self.wfile.write(body)

            do_GET = do_POST

            def log_message(self, *_: object) -> None: ...

        server = ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        servers.append(server)
        return f"http://127.0.0.1:{server.server_port}"

    yield serve
    for server in servers:
        server.shutdown()
        server.server_close()


def answer(body: object, status: int = 200) -> Answer:
    return status, {}, body if isinstance(body, bytes) else json.dumps(body).encode()


GOOD = answer({"responses": [{"reward": 0.5, "metadata": {}, "id": None}]})


async def test_what_passes_is_tried_again(service: Service, scripted: Callable[..., str]) -> None:
    url = scripted(answer({}, 503), answer({}, 429), GOOD)
    assert (await service.grade(remote(url), THREAD)).value == 0.5
    with pytest.raises(UnavailableError, match=r"'far'.*answered 500.*5 times"):
        await service.grade(remote(scripted(answer(b"broken", 500))), THREAD)


@pytest.mark.parametrize(
    ("given", "says"),
    [
        (answer({}, 404), "answered 404"),
        (answer(b"<html>"), "no list of rewards"),
        (answer({"responses": []}), "0 rewards for 1"),
        (answer(b'{"responses": [{"reward": NaN}]}'), "no list of rewards"),
        (answer({"responses": [{"reward": "high"}]}), "no list of rewards"),
        ((302, {"location": "http://169.254.169.254/"}, b""), "redirects"),
        (answer(b"x" * (17 * 1024 * 1024)), "more than"),
    ],
)
async def test_wrong_answers_name_the_grader(
    service: Service, scripted: Callable[..., str], given: Answer, says: str
) -> None:
    with pytest.raises(InvalidRequestError, match=f"'far'.*{says}.*mend its server"):
        await service.grade(remote(scripted(given)), THREAD)


# ---------------------------------------------------------------------------------------------- addresses


@pytest.mark.parametrize(
    "host",
    [
        *(
            "127.0.0.1",
            "localhost",
            "0.0.0.0",
            "10.1.2.3",
            "172.16.0.1",
            "192.168.1.1",
            "169.254.169.254",
            "100.64.0.1",
        ),
        *("::1", "::", "fe80::1", "fc00::1", "::ffff:127.0.0.1", "64:ff9b::7f00:1", "2002:7f00:1::", "224.0.0.1"),
        *("2130706433", "0x7f.1", "127.1"),
    ],
)
async def test_addresses_that_are_not_public_are_refused(host: str) -> None:
    with pytest.raises(ForbiddenAddressError, match="SOME_SETTING=true"):
        await AddressGuard(allow_private=False, setting="SOME_SETTING").resolve(host, 80)


async def test_a_name_that_changes_its_meaning_gains_nothing(
    monkeypatch: pytest.MonkeyPatch, scripted: Callable[..., str]
) -> None:
    port = int(scripted(GOOD).rpartition(":")[2])
    asked: list[str] = []

    async def getaddrinfo(_: object, host: Any, wanted: Any, **__: Any) -> Any:
        asked.append(host)
        address = "93.184.216.34" if len(asked) == 1 else "127.0.0.1"
        return [(socket.AF_INET, socket.SOCK_STREAM, 6, "", (address, wanted))]

    outbound = Outbound(allow_private=False, setting="SOME_SETTING", seconds=0.3)
    monkeypatch.setattr(asyncio.base_events.BaseEventLoop, "getaddrinfo", getaddrinfo)
    with pytest.raises(OutboundError):  # it goes to the public address, where nothing of ours is
        await outbound.ask("GET", f"http://rebind.example:{port}/info")
    with pytest.raises(ForbiddenAddressError):
        await outbound.ask("GET", f"http://rebind.example:{port}/info")
    await outbound.close()


def test_by_default_nothing_private_can_be_reached(tmp_path: Path, lengths: str) -> None:
    with (
        Plane(ControlConfig(data_dir=tmp_path)) as plane,
        closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as adaptive,
    ):
        offline = adaptive.graders.test_external_endpoint(url=lengths)
        assert "ADAPTIVE_GRADERS__ALLOW_PRIVATE" in offline.error
