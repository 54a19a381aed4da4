"""A request as the transports send it."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, TypedDict
from urllib.parse import parse_qsl, urlsplit

import msgspec

from harmonia.sdk.files import FilePart
from harmonia.sdk.operations.base import Operation

GRAPHQL = "/api/graphql"
REST = "/api/v1"
USER_AGENT = "harmonia-sdk"
DEFAULT_TIMEOUT_S = 90.0
DEFAULT_RETRIES = 2


@dataclass(frozen=True)
class Options:
    """How requests are sent."""

    timeout_s: float | None = DEFAULT_TIMEOUT_S
    """Longest wait for the next bytes of an answer; None: for ever."""
    retries: int = DEFAULT_RETRIES
    """How often a read is sent again after a fault that may pass, and anything that the server asks to send again."""


class OptionChanges(TypedDict, total=False):
    """What `with_options` may change."""

    timeout_s: float | None
    """Longest wait for the next bytes of an answer; None: for ever."""
    retries: int
    """How often a request may be sent again."""


@dataclass(frozen=True)
class Call:
    """One request."""

    method: str
    path: str
    """Below the address of the server, or an address of its own."""
    repeatable: bool = False
    """Whether sending it twice does no more than sending it once."""
    json: object = None
    content: bytes | None = None
    params: Mapping[str, str | int] | None = None
    data: Mapping[str, str] | None = None
    files: Mapping[str, FilePart] | None = None
    headers: Mapping[str, str] = field(default_factory=dict)

    def arguments(self) -> dict[str, Any]:
        """As httpx takes them."""
        headers, content = dict(self.headers), self.content
        if self.json is not None:
            content = msgspec.json.encode(self.json)
            headers["content-type"] = "application/json"
        return {
            "method": self.method,
            "url": self.path,
            "content": content,
            "params": self.params,
            "data": self.data,
            "files": self.files,
            "headers": headers,
        }


Attached = FilePart | Sequence[FilePart]
"""What the variable `file` of an operation stands for, or `files` if it is several."""


def graphql_call(operation: Operation[Any], variables: Mapping[str, Any], file: Attached | None) -> Call:
    """An operation; with files as the GraphQL multipart request specification has it."""
    if file is not None and not isinstance(file, FilePart):
        return _with_files(operation, variables, file)
    body = {
        "query": operation.document,
        "operationName": operation.name,
        "variables": {**variables, "file": None} if file is not None else variables,
    }
    if file is None:
        return Call("POST", GRAPHQL, operation.kind == "query", json=body)
    data = {"operations": msgspec.json.encode(body).decode(), "map": '{"0": ["variables.file"]}'}
    return Call("POST", GRAPHQL, data=data, files={"0": file})


def _with_files(operation: Operation[Any], variables: Mapping[str, Any], files: Sequence[FilePart]) -> Call:
    body = {
        "query": operation.document,
        "operationName": operation.name,
        "variables": {**variables, "files": [None] * len(files)},
    }
    if not files:
        return Call("POST", GRAPHQL, json=body)
    places = {str(place): [f"variables.files.{place}"] for place in range(len(files))}
    data = {"operations": msgspec.json.encode(body).decode(), "map": msgspec.json.encode(places).decode()}
    return Call("POST", GRAPHQL, data=data, files={str(place): file for place, file in enumerate(files)})


def download_call(url: str, params: Mapping[str, str | int] | None = None) -> Call:
    """The content of something, at an address that the server gave; only its path counts, so the key stays here."""
    parts = urlsplit(url)
    return Call("GET", parts.path, repeatable=True, params={**dict(parse_qsl(parts.query)), **(params or {})})
