# Made by scripts/generate of src/harmonia/sdk/aio/transport.py: change that file, then run the script.
"""One way to the server for all resources."""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Generic, TypeVar

import httpx

from harmonia.errors import HarmoniaError, InvalidRequestError
from harmonia.sdk.answers import error_of, pause_before_retry, read_graphql, read_json, unreachable
from harmonia.sdk.call import USER_AGENT, Attached, Call, Options, download_call, graphql_call
from harmonia.sdk.conversation import Events, cut_off
from harmonia.sdk.files import arriving
from harmonia.sdk.operations.base import Operation
from harmonia.sdk.settings import Settings

T = TypeVar("T")


class Transport:
    """Sends requests with the key of the settings, again where that may help, and reads the answers."""

    def __init__(self, settings: Settings, options: Options, http: httpx.Client | None = None) -> None:
        self.settings = settings
        self.options = options
        self.address = settings.require_address()
        self._http = http or httpx.Client(
            base_url=self.address,
            headers={"authorization": f"Bearer {settings.require_key()}", "user-agent": USER_AGENT},
        )

    def project(self, project: str | None) -> str:
        """The project of a call; InvalidRequestError if neither the call nor the settings name one."""
        chosen = project or self.settings.default_project
        if chosen:
            return chosen
        raise InvalidRequestError(
            "which project? Give project= (--project on the command line), or set a default with DEFAULT_PROJECT or "
            "`harmonia config --project KEY`",
            field="project",
        )

    def with_options(self, options: Options) -> Transport:
        """The same connections, used otherwise."""
        return Transport(self.settings, options, self._http)

    def close(self) -> None:
        """Give the connections back."""
        self._http.close()

    def execute(self, operation: Operation[T], file: Attached | None = None, /, **variables: Any) -> T:
        """The answer to a GraphQL operation."""
        response = self.send(graphql_call(operation, variables, file))
        value: T = read_json(read_graphql(response.content, operation.field), operation.result)
        return value

    def fetch(self, call: Call, kind: type[T]) -> T:
        """The answer to a REST request, as a type."""
        response = self.send(call)
        value: T = read_json(response.content, kind)
        return value

    def send(self, call: Call) -> httpx.Response:
        """A successful answer, read whole."""
        response = self.open(call)
        try:
            response.read()
        except httpx.TransportError as error:
            raise unreachable(error, self.address, self.options.timeout_s) from error
        finally:
            response.close()
        return response

    def open(self, call: Call) -> httpx.Response:
        """A successful answer whose body has not been read; the caller closes it."""
        attempt = 0
        while True:
            response, error = self._try(call)
            if error is None:
                assert response is not None
                return response
            is_last = attempt >= self.options.retries
            pause = None if is_last else pause_before_retry(attempt, call.repeatable, response)
            if pause is None or error.details.get("limit"):
                raise error
            time.sleep(pause)
            attempt += 1

    def _try(self, call: Call) -> tuple[httpx.Response | None, HarmoniaError | None]:
        request = self._http.build_request(timeout=self.options.timeout_s, **call.arguments())
        try:
            response = self._http.send(request, stream=True)
            if response.is_success:
                return response, None
            try:
                response.read()
            finally:
                response.close()
        except httpx.TransportError as error:
            failure = unreachable(error, self.address, self.options.timeout_s)
            failure.__cause__ = error
            return None, failure
        return response, error_of(response)

    def download(self, url: str, to: str | Path | None, **params: str) -> bytes:
        """The content at an address of the server; kept in a file if one is named, and then empty here."""
        call = download_call(url, params)
        if to is None:
            return (self.send(call)).content
        response = self.open(call)
        try:
            with arriving(Path(to)) as file:
                for piece in response.iter_bytes():
                    file.write(piece)
        except httpx.TransportError as error:
            raise unreachable(error, self.address, self.options.timeout_s) from error
        finally:
            response.close()
        return b""

    def stream(self, call: Call, kind: type[T]) -> Stream[T]:
        """The events of an answer."""
        return Stream(self.open(call), kind, self)


class Stream(Generic[T]):
    """The events of a streamed answer, one after the other; leaving early ends the generation."""

    def __init__(self, response: httpx.Response, kind: type[T], transport: Transport) -> None:
        self._response = response
        self._kind = kind
        self._transport = transport

    def __enter__(self) -> Stream[T]:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def close(self) -> None:
        """Tell the server that nobody listens any longer."""
        self._response.close()

    def __iter__(self) -> Iterator[T]:
        """The events until the answer is complete; HarmoniaError if it breaks off."""
        events = Events()
        try:
            for received in self._response.iter_bytes():
                for data in events.feed(received):
                    event: T = read_json(data, self._kind)
                    yield event
        except httpx.TransportError as error:
            transport = self._transport
            raise unreachable(error, transport.address, transport.options.timeout_s) from error
        finally:
            self._response.close()
        if not events.done:
            raise cut_off()
