"""What the client does when the server, or the way to it, is not well."""

import json
import socket
from collections.abc import Callable, Iterator
from pathlib import Path

import httpx
import pytest

from harmonia.errors import (
    AuthenticationError,
    DeadlineExceededError,
    EntityNotFoundError,
    HarmoniaError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    SequenceTooLongError,
    UnavailableError,
)
from harmonia.sdk import Adaptive, AsyncAdaptive
from harmonia.sdk.call import Options
from harmonia.sdk.settings import Settings
from harmonia.sdk.sync import transport as sync_transport
from harmonia.sdk.sync.transport import Transport

Answer = httpx.Response | Exception
HELLO = [{"role": "user", "content": "Hello"}]


class Script:
    """A server that gives answers in turn, and remembers what it was asked."""

    def __init__(self) -> None:
        self.answers: list[Answer] = []
        self.asked: list[httpx.Request] = []
        self.pauses: list[float] = []

    def __call__(self, request: httpx.Request) -> httpx.Response:
        self.asked.append(request)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def body(self) -> dict[str, object]:
        """What was asked last."""
        return dict(json.loads(self.asked[-1].content))


@pytest.fixture
def script(monkeypatch: pytest.MonkeyPatch) -> Script:
    script = Script()
    monkeypatch.setattr(sync_transport.time, "sleep", script.pauses.append)
    return script


@pytest.fixture
def adaptive(script: Script) -> Iterator[Adaptive]:
    """A client of the script."""
    client = Adaptive(base_url="http://server", api_key="hk-1", default_project="p")
    http = httpx.Client(transport=httpx.MockTransport(script), base_url="http://server")
    settings = Settings("http://server", "hk-1", "p")
    client.close()
    client._adopt(Transport(settings, Options(), http))
    with client:
        yield client


def data(**values: object) -> httpx.Response:
    """A GraphQL answer."""
    return httpx.Response(200, json={"data": values})


def refused(message: str, code: str | None = None) -> httpx.Response:
    """A GraphQL answer that says why not."""
    error = {"message": message, **({} if code is None else {"extensions": {"code": code}})}
    return httpx.Response(200, json={"data": None, "errors": [error]})


def test_reads_are_repeated_and_changes_are_not(script: Script, adaptive: Adaptive) -> None:
    script.answers = [httpx.ConnectError("refused"), httpx.Response(502), data(permissions=["a"])]
    assert adaptive.permissions.list() == ["a"]
    assert len(script.pauses) == 2
    assert script.pauses[0] <= 0.25 < script.pauses[1] * 2
    script.answers = [httpx.Response(502)]
    with pytest.raises(UnavailableError):
        adaptive.teams.create("x")
    script.answers = [httpx.ReadError("reset")]
    with pytest.raises(UnavailableError, match="broke"):
        adaptive.chat.create(HELLO)


@pytest.mark.parametrize("status", [429, 503])
def test_a_server_that_asks_for_patience_gets_it(script: Script, adaptive: Adaptive, status: int) -> None:
    busy = httpx.Response(status, headers={"retry-after": "3"}, json={"error": {"message": "later"}})
    script.answers = [busy, data(createTeam={"id": "1", "key": "x", "name": "x", "createdAt": 1})]
    assert adaptive.teams.create("x").key == "x"
    assert script.pauses == [3]
    script.answers = [httpx.Response(status, headers={"retry-after": "3600"}, json={"error": {"message": "later"}})]
    with pytest.raises(HarmoniaError, match="later") as raised:
        adaptive.permissions.list()
    assert raised.value.details["retry_after_s"] == 3600


def test_patience_ends(script: Script, adaptive: Adaptive) -> None:
    script.answers = [httpx.Response(503, headers={"retry-after": "0"}, text="busy") for _ in range(9)]
    with pytest.raises(UnavailableError, match="busy"):
        adaptive.permissions.list()
    assert len(script.asked) == 3
    with pytest.raises(UnavailableError):
        adaptive.with_options(retries=0).permissions.list()
    assert len(script.asked) == 4


@pytest.mark.parametrize(
    ("status", "body", "kind"),
    [
        (401, {"error": {"message": "words"}}, AuthenticationError),
        (403, {"error": "words"}, PermissionDeniedError),
        (404, {"error": {"message": "words", "code": "not_found"}}, EntityNotFoundError),
        (400, {"error": {"message": "words", "code": "context_length_exceeded"}}, SequenceTooLongError),
        (422, {"detail": "words"}, InvalidRequestError),
        (400, {"errors": [{"message": "words"}]}, InvalidRequestError),
        (408, {"error": {"message": "words"}}, DeadlineExceededError),
        (429, {"error": {"message": "words"}}, OverloadedError),
        (500, {"error": {"message": "words"}}, HarmoniaError),
    ],
)
def test_errors_keep_the_servers_words(
    script: Script, adaptive: Adaptive, status: int, body: object, kind: type[HarmoniaError]
) -> None:
    script.answers = [httpx.Response(status, json=body)]
    with pytest.raises(kind, match="words") as raised:
        adaptive.chat.create(HELLO)
    assert type(raised.value) is kind
    assert raised.value.details["status"] == status


def test_graphql_errors_become_exceptions(script: Script, adaptive: Adaptive) -> None:
    script.answers = [refused("EntityNotFound: Dataset 'x' does not exist", "entity_not_found")]
    with pytest.raises(EntityNotFoundError, match=r"^Dataset 'x' does not exist$"):
        adaptive.datasets.delete("x")
    script.answers = [refused("you may not", "permission_denied")]
    with pytest.raises(PermissionDeniedError, match="you may not"):
        adaptive.datasets.delete("x")
    script.answers = [refused("Cannot query field")]
    with pytest.raises(InvalidRequestError, match="Cannot query"):
        adaptive.datasets.delete("x")


@pytest.mark.parametrize("text", ["<html>", "[]", "{}", '{"data": {}}'])
def test_what_is_no_answer_is_told(script: Script, adaptive: Adaptive, text: str) -> None:
    script.answers = [httpx.Response(200, text=text)]
    with pytest.raises(HarmoniaError, match="is the address right"):
        adaptive.permissions.list()
    script.answers = [httpx.Response(307, headers={"location": "https://elsewhere/"})]
    with pytest.raises(HarmoniaError, match="https://elsewhere/"):
        adaptive.permissions.list()


def test_an_answer_of_another_shape_is_told(script: Script, adaptive: Adaptive) -> None:
    script.answers = [data(permissions=[1])]
    with pytest.raises(HarmoniaError, match="not as expected"):
        adaptive.permissions.list()


def test_timeouts_are_set_per_call_and_not_repeated(script: Script, adaptive: Adaptive) -> None:
    script.answers = [httpx.ReadTimeout("slow")]
    with pytest.raises(DeadlineExceededError, match=r"within 0\.5 s"):
        adaptive.with_options(timeout_s=0.5).permissions.list()
    assert script.asked[-1].extensions["timeout"]["read"] == 0.5
    script.answers = [data(permissions=[])]
    adaptive.permissions.list()
    assert script.asked[-1].extensions["timeout"]["read"] == 90


async def test_where_nobody_listens() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = "http://{}:{}".format(*free.getsockname())
    with Adaptive(address, "k", retries=0) as adaptive, pytest.raises(UnavailableError, match="no server listens at"):
        adaptive.users.me()
    async with AsyncAdaptive(address, "k", retries=1) as other:
        with pytest.raises(UnavailableError, match=address):
            await other.users.me()


# ------------------------------------------------------------------------------------------------------------ streams


def events(*texts: str) -> bytes:
    """Server-sent events."""
    return "".join(f"data: {text}\n\n" for text in texts).encode()


def chunk(content: str) -> str:
    """A piece of an answer."""
    choice = {"index": 0, "delta": {"content": content}}
    return json.dumps({"id": "1", "created": 1.5, "choices": [choice]}, ensure_ascii=False)


def pieces(body: bytes, size: int) -> httpx.Response:
    """A stream that comes in pieces of some bytes."""
    return httpx.Response(200, content=(body[i : i + size] for i in range(0, len(body), size)))


@pytest.mark.parametrize("size", [1, 7, 10_000])
def test_streams_are_read_however_they_are_cut(script: Script, adaptive: Adaptive, size: int) -> None:
    odd = "a\u2028b\x85ü"  # lines to some, not to these events
    body = b": ping\r\n\r\n" + events(chunk(odd), chunk("c")).replace(b"\n", b"\r\n") + events("[DONE]")
    script.answers = [pieces(body, size)]
    with adaptive.chat.create(HELLO, stream=True) as stream:
        assert [piece.choices[0].delta.content for piece in stream] == [odd, "c"]
    assert script.asked[-1].headers["accept"] == "text/event-stream"


def test_an_error_in_a_stream_is_raised(script: Script, adaptive: Adaptive) -> None:
    error = json.dumps({"error": {"message": "too late", "code": "timeout"}})
    script.answers = [pieces(events(chunk("a"), error), 9)]
    stream = iter(adaptive.chat.create(HELLO, stream=True))
    assert next(stream).choices
    with pytest.raises(DeadlineExceededError, match="too late"):
        next(stream)


def test_a_stream_that_breaks_off_is_no_answer(script: Script, adaptive: Adaptive) -> None:
    script.answers = [pieces(events(chunk("a")), 9)]
    with pytest.raises(HarmoniaError, match="ended before the answer did"):
        list(adaptive.chat.create(HELLO, stream=True))


def test_a_refused_stream_says_why(script: Script, adaptive: Adaptive) -> None:
    script.answers = [httpx.Response(404, json={"error": {"message": "no such model", "code": "model_not_found"}})]
    with pytest.raises(InvalidRequestError, match="no such model"):
        adaptive.chat.create(HELLO, "x", stream=True)
    assert script.body()["model"] == "p/x"


# ------------------------------------------------------------------------------------------------------------ uploads


@pytest.fixture
def large(tmp_path: Path) -> Path:
    """Three parts of lines."""
    file = tmp_path / "rows.jsonl"
    file.write_bytes(b"x" * (5 * 1024**2 * 2 + 5))
    return file


def part_number(request: httpx.Request) -> int:
    """Which part was sent; 0 for anything else."""
    return int(request.url.params.get("part_number", 0))


def test_parts_are_repeated_and_an_upload_is_continued(script: Script, adaptive: Adaptive, large: Path) -> None:
    started, taken = httpx.Response(200, json={"session_id": "s"}), [httpx.Response(200) for _ in range(3)]
    script.answers = [started, taken[0], httpx.ReadError("reset"), taken[1], httpx.Response(500, text="disk")]
    seen: list[int] = []
    with pytest.raises(HarmoniaError, match="disk") as raised:
        adaptive.datasets.upload(large, "d", on_progress=lambda done: seen.append(done.sent_bytes))
    assert [part_number(request) for request in script.asked] == [0, 1, 2, 2, 3]
    assert seen == [5 * 1024**2, 10 * 1024**2]
    session = str(raised.value.details["upload_session"])
    status = httpx.Response(200, json={"completed_parts": [2, 1], "total_parts_count": 3})
    script.answers = [status, taken[2], refused("stop here")]
    script.asked.clear()
    with pytest.raises(InvalidRequestError, match="stop here"):
        adaptive.datasets.upload(large, "d", session_id=session)
    assert [part_number(request) for request in script.asked] == [0, 3, 0]
    script.answers = [httpx.Response(200, json={"completed_parts": [], "total_parts_count": 4})]
    with pytest.raises(InvalidRequestError, match="another file"):
        adaptive.datasets.upload(large, "d", session_id=session)


def test_what_is_misspelt_is_named_before_anything_is_sent(script: Script, adaptive: Adaptive) -> None:
    calls: list[Callable[[], object]] = [
        lambda: adaptive.models.update_compute_config("m", {"kv_cache": 1}),  # type: ignore[typeddict-unknown-key]
        lambda: adaptive.models.deploy("m", placement={"pools": []}),  # type: ignore[typeddict-unknown-key]
        lambda: adaptive.interactions.list(filters={"user_id": "x"}),  # type: ignore[typeddict-unknown-key]
        lambda: adaptive.models.add_external("n", "i", "k", "azure"),  # type: ignore[arg-type]
        lambda: adaptive.datasets.upload("nowhere.jsonl", "d"),
    ]
    for call in calls:
        with pytest.raises(InvalidRequestError):
            call()
    assert not script.asked
    adaptive.set_default_project("")
    with pytest.raises(InvalidRequestError, match="which project"):
        adaptive.datasets.list()
