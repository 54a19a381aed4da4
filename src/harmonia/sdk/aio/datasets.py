"""Data sets."""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, Literal

import msgspec

from harmonia.errors import EntityNotFoundError, HarmoniaError, InvalidRequestError
from harmonia.sdk.aio.resource import AsyncResource
from harmonia.sdk.call import REST, Call
from harmonia.sdk.files import (
    CHUNKED_ABOVE,
    FilePart,
    UploadProgress,
    existing_file,
    part_size_of,
    read_parts,
)
from harmonia.sdk.operations import datasets
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.datasets import Dataset
from harmonia.sdk.waiting import Deadline

MEDIA_TYPE = "application/jsonl"
OnProgress = Callable[[UploadProgress], None]


class _Session(msgspec.Struct):
    session_id: str


class _Parts(msgspec.Struct):
    completed_parts: list[int]
    total_parts_count: int


class AsyncDatasets(AsyncResource):
    """`adaptive.datasets`: data sets of a project, by key or id."""

    async def upload(
        self,
        file_path: str | Path,
        dataset_key: str,
        name: str | None = None,
        project: str | None = None,
        on_progress: OnProgress | None = None,
        session_id: str | None = None,
    ) -> Dataset:
        """Make a data set of a file of JSON lines; its name is its key unless given.

        More than 5 MiB go in parts, each again if its connection breaks. on_progress: told after each part.
        session_id: continue an upload that was cut off; progress tells it, and so do the details of the exception
        as `upload_session`.
        """
        file = existing_file(file_path)
        new = {"project": self._project(project), "name": name or dataset_key, "key": dataset_key}
        size = file.stat().st_size
        if size > CHUNKED_ABOVE:
            return await self._upload_parts(file, new, on_progress, session_id)
        part = FilePart(file.stem, file.read_bytes(), MEDIA_TYPE)
        created = await self._transport.execute(datasets.CREATE_DATASET, part, input=new)
        if on_progress is not None:
            on_progress(UploadProgress(size, size))
        return created

    async def list(self, project: str | None = None) -> Sequence[Dataset]:
        """All data sets of a project."""
        return await self._transport.execute(datasets.DATASETS, project=self._project(project))

    async def get(self, key: str, project: str | None = None) -> Dataset | None:
        """One of them."""
        return await self._transport.execute(datasets.DATASET, idOrKey=key, project=self._project(project))

    async def delete(self, key: str, project: str | None = None) -> bool:
        """Remove a data set."""
        return await self._transport.execute(datasets.DELETE_DATASET, idOrKey=key, project=self._project(project))

    async def download(
        self,
        key: str,
        to: str | Path | None = None,
        format: Literal["original", "recipe"] = "original",
        project: str | None = None,
    ) -> bytes:
        """The lines as they were uploaded, or as recipes read them; kept in the file `to` if one is named."""
        found = await self.get(key, project)
        if found is None:
            raise EntityNotFoundError(f"Dataset {key!r} does not exist", entity="dataset")
        return await self._transport.download(found.download_url, to, format=format)

    async def _upload_parts(
        self, file: Path, new: dict[str, str], on_progress: OnProgress | None, session_id: str | None
    ) -> Dataset:
        size = file.stat().st_size
        part_size = part_size_of(size)
        total = -(-size // part_size)
        done = frozenset[int]()
        if session_id is None:
            session_id = await self._begin(total)
        else:
            done = await self._completed(session_id, total)
        try:
            await self._send_parts(file, part_size, done, on_progress, session_id)
            body = {**new, "uploadSessionId": session_id}
            processing = await self._transport.execute(datasets.CREATE_FROM_UPLOAD, input=body)
        except HarmoniaError as error:
            error.details["upload_session"] = session_id
            raise
        return await self._processed(processing.dataset_id, new["project"])

    async def abort_upload(self, session_id: str) -> None:
        """Let the server forget the parts of an upload that will not be continued."""
        call = Call("DELETE", f"{REST}/upload/abort", repeatable=True, json={"session_id": session_id})
        await self._transport.send(call)

    async def _begin(self, total: int) -> str:
        body = {"content_type": MEDIA_TYPE, "metadata": None, "total_parts_count": total}
        call = Call("POST", f"{REST}/upload/init", json=body)
        return (await self._transport.fetch(call, _Session)).session_id

    async def _completed(self, session_id: str, total: int) -> frozenset[int]:
        call = Call("POST", f"{REST}/upload/status", repeatable=True, json={"session_id": session_id})
        found = await self._transport.fetch(call, _Parts)
        if found.total_parts_count != total:
            raise InvalidRequestError(
                f"that upload has {found.total_parts_count} parts and this file {total}; it is another file",
                field="session_id",
            )
        return frozenset(found.completed_parts)

    async def _send_parts(
        self, file: Path, part_size: int, done: frozenset[int], on_progress: OnProgress | None, session_id: str
    ) -> None:
        size = file.stat().st_size
        sent = min(len(done) * part_size, size)
        headers = {"content-type": "application/octet-stream"}
        for number, content in read_parts(file, part_size, done):
            params: dict[str, Any] = {"session_id": session_id, "part_number": number}
            path = f"{REST}/upload/part"
            call = Call("POST", path, repeatable=True, content=content, params=params, headers=headers)
            await self._transport.send(call)
            sent = min(sent + len(content), size)
            if on_progress is not None:
                on_progress(UploadProgress(sent, size, session_id))

    async def _processed(self, dataset_id: str, project: str) -> Dataset:
        asked, pace = given(project=project, datasetId=dataset_id), Deadline(None)
        while True:
            processing = await self._transport.execute(datasets.PROCESSING, input=asked)
            if processing.status == "ERROR":
                raise InvalidRequestError(processing.error or "the server cannot read the file", field="file_path")
            if processing.status == "DONE":
                break
            await asyncio.sleep(pace.pause())
        found = await self.get(dataset_id, project)
        if found is None:
            raise EntityNotFoundError(f"Dataset {dataset_id!r} was removed meanwhile", entity="dataset")
        return found
