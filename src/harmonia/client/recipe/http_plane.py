"""The control plane over HTTP, as the process of a job sees it."""

from __future__ import annotations

import asyncio
import json
import threading
import time
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any
from urllib.parse import quote, urljoin

import httpx
import msgspec

from harmonia import tracing
from harmonia.client.data import AdaptiveGrader
from harmonia.client.recipe.grader_records import GRADER, Verdict, Verdicts, grader_record
from harmonia.errors import (
    AuthenticationError,
    EntityNotFoundError,
    InvalidRequestError,
    OverloadedError,
    PermissionDeniedError,
    UnavailableError,
)
from harmonia.log import get_logger

log = get_logger(__name__)

_TIMEOUT_S = 60.0
_GRADING_TIMEOUT_S = 1800.0
"""Graders have limits of their own, which end what hangs; judges of many conversations wait for each other."""
_GRADING_THREADS = 8
"""Apart from those that everything else waits in: grades may take minutes."""
_PATIENCE_S = 20.0
"""For so long a control plane that does not answer is asked again."""
_FIRST_PAUSE_S, _LONGEST_PAUSE_S = 0.1, 2.0
_REFUSALS = {
    401: AuthenticationError,
    403: PermissionDeniedError,
    404: EntityNotFoundError,
    429: OverloadedError,
    500: UnavailableError,
}
_URI = "://"
_PATHS = ("/", ".", "~")
_KINDS = {"eval": "EVALUATION"}
"""Kinds of artifacts whose name is another there; of all others it is the same in capitals."""
_PART_BYTES = 5 << 20

_MODEL = """query ($key: IdOrKey!) {
  model(idOrKey: $key) { id key harmonyUrl computeSettings { tp kvCacheLen maxSeqLen tokensToGenerate } } }"""
_DATASET = """query ($key: IdOrKey!, $project: IdOrKey!) {
  dataset(idOrKey: $key, project: $project) { id key name kind downloadUrl } }"""
_ARTIFACT = "query ($id: UUID!, $project: IdOrKey!) { artifact(id: $id, project: $project) { metadata } }"
_PROGRESS = """mutation ($job: UUID!, $event: JobProgressEventInput!) {
  updateJobProgress(jobId: $job, event: $event) { success message } }"""


@dataclass
class ModelRecord:
    """A model's settings as the control plane has them."""

    model_id: str
    model_key: str
    harmony_url: str
    tp: int | None = None
    kv_cache_len: int | None = None
    max_seq_len: int | None = None
    tokens_to_generate: int | None = None
    extra_params: str | None = None


@dataclass
class DatasetRecord:
    """A data set as the control plane has it."""

    dataset_id: str
    dataset_key: str
    name: str
    file_path: str
    kind: str


class HttpControlPlane:
    """A `ControlPlane` at an address, asked with a key. Calls block, those that are async do not.

    One that does not answer is asked again for 20 s; then UnavailableError. What it refuses raises the error that it
    names: InvalidRequestError, EntityNotFoundError, PermissionDeniedError, AuthenticationError.
    """

    def __init__(self, url: str, api_key: str, project: str) -> None:
        self._project = project
        self._url = f"{url.rstrip('/')}/"
        headers = {"Authorization": f"Bearer {api_key}"}
        if trace := tracing.traceparent():
            headers["traceparent"] = trace
        self._http = httpx.Client(base_url=self._url, headers=headers, timeout=_TIMEOUT_S, trust_env=False)
        self._grading = ThreadPoolExecutor(_GRADING_THREADS, thread_name_prefix="grading")
        self._stages: list[str] = []
        self._heartbeat: _Heartbeat | None = None

    def close(self) -> None:
        """End the heartbeat and the connections."""
        self.stop_heartbeat()
        self._grading.shutdown(wait=False, cancel_futures=True)
        self._http.close()

    # --------------------------------------------------------------------------------------------- settings

    async def get_model_config(self, model_key: str) -> ModelRecord:
        """A model of the registry; an address or a path stands for itself."""
        if _URI in model_key or model_key.startswith(_PATHS):
            return ModelRecord(model_key, model_key, model_key)
        answer = await asyncio.to_thread(self._ask, _MODEL, {"key": model_key})
        found = answer["model"]
        if found is None:
            raise EntityNotFoundError(f"model {model_key!r} does not exist, or may not be seen", entity="model")
        if found["harmonyUrl"] is None:
            raise InvalidRequestError(
                f"{model_key!r} is an external model, which jobs cannot load; name one of the server's own",
                field="model",
            )
        chosen = found["computeSettings"]  # and not the defaults: beside a server that runs they may not fit
        return ModelRecord(
            model_id=found["id"],
            model_key=found["key"],
            harmony_url=found["harmonyUrl"],
            tp=chosen["tp"],
            kv_cache_len=chosen["kvCacheLen"],
            max_seq_len=chosen["maxSeqLen"],
            tokens_to_generate=chosen["tokensToGenerate"],
        )

    async def get_dataset_config(self, dataset_key: str) -> DatasetRecord:
        """A data set of the job's project."""
        found = await asyncio.to_thread(self._dataset, dataset_key)
        return DatasetRecord(
            found["id"], found["key"] or dataset_key, found["name"], found["downloadUrl"], found["kind"]
        )

    async def get_grader_config(self, grader_key: str) -> AdaptiveGrader:
        """A grader of the job's project."""
        variables = {"key": grader_key, "project": self._project}
        return grader_record((await asyncio.to_thread(self._ask, GRADER, variables))["grader"])

    async def grade(self, grader_key: str, threads: Sequence[Mapping[str, Any]]) -> list[Verdict]:
        """Let a grader of the job's project grade conversations; it takes as long as the grader does."""
        path = f"api/v1/projects/{quote(self._project)}/graders/{quote(grader_key)}/grade"
        body = {"threads": threads}
        send = partial(self._send, "POST", path, json=body, timeout=_GRADING_TIMEOUT_S)
        answer = await asyncio.get_running_loop().run_in_executor(self._grading, send)
        return msgspec.json.decode(answer.content, type=Verdicts).grades

    def get_checkpoint_metadata(self, artifact_id: str) -> Mapping[str, Any]:
        """What a checkpoint was reported with."""
        found = self._ask(_ARTIFACT, {"id": artifact_id, "project": self._project})["artifact"]
        if found is None:
            raise EntityNotFoundError(f"checkpoint {artifact_id!r} does not exist", entity="artifact")
        metadata: dict[str, Any] = found["metadata"]
        return metadata

    # ------------------------------------------------------------------------------------------------ files

    def download_dataset(self, dataset_key: str, file_path: str) -> None:
        """Write a data set, as recipes read it, to a file."""
        self.download_file(f"{self._dataset(dataset_key)['downloadUrl']}?format=recipe", file_path)

    def get_recipe_download_url(self, recipe_key: str) -> str:
        """Where the zip of a recipe is; with the key of a job, in the version with which the job was made."""
        return f"{self._url}api/v1/projects/{quote(self._project)}/recipes/{quote(recipe_key)}/download"

    def download_file(self, url: str, file_path: str) -> None:
        """Write what is at an address of the control plane to a file, as a whole or not at all."""
        target = Path(file_path)
        target.parent.mkdir(parents=True, exist_ok=True)
        part = target.with_name(f".{target.name}.part")
        with self._http.stream("GET", urljoin(self._url, url)) as answer, part.open("wb") as file:
            if answer.is_error:
                answer.read()
            _check(answer)
            for block in answer.iter_bytes():
                file.write(block)
        part.replace(target)

    def upload_file(self, file_path: str, content_type: str) -> str:
        """Upload a file in parts; the id of the upload."""
        file = Path(file_path)
        count = max(1, -(-file.stat().st_size // _PART_BYTES))
        begin = {"content_type": content_type, "metadata": None, "total_parts_count": count}
        session_id = str(self._send("POST", "api/v1/upload/init", json=begin).json()["session_id"])
        with file.open("rb") as content:
            for number in range(1, count + 1):
                self._send(
                    "POST",
                    "api/v1/upload/part",
                    params={"session_id": session_id, "part_number": str(number)},
                    content=content.read(_PART_BYTES),
                    headers={"Content-Type": "application/octet-stream"},
                )
        return session_id

    # ---------------------------------------------------------------------------------------------- reports

    def mark_running(self, job_id: str) -> None:
        """The recipe begins."""
        self._report(job_id, {"markRunning": {}})

    def register_job_stages(self, job_id: str, stages: Sequence[tuple[str, int, str | None]]) -> None:
        """The stages of the job."""
        self._stages = [key for key, _, _ in stages]
        rows = [{"stageKey": key, "stageId": place, "parent": parent} for key, place, parent in stages]
        self._report(job_id, {"registerStages": {"stages": rows}})

    def update_job_progress(
        self,
        job_id: str,
        stage: str,
        tot_num_samples: int | None,
        processed_num_samples: int | None,
        monitoring_link: str | None,
        checkpoints: Sequence[str] | None,
    ) -> None:
        """How far a stage is; None leaves a value as it was."""
        info = {
            "totalNumSamples": tot_num_samples,
            "processedNumSamples": processed_num_samples,
            "monitoringLink": monitoring_link,
            "checkpoints": None if checkpoints is None else list(checkpoints),
        }
        given = {name: value for name, value in info.items() if value is not None}
        self._report(job_id, {"updateProgress": {"stageKey": stage, "info": {"train": given}}})

    def set_monitoring_link(self, job_id: str, monitoring_link: str) -> None:
        """The link of every stage, as a job itself has none."""
        for stage in self._stages:
            self.update_job_progress(job_id, stage, None, None, monitoring_link, None)

    def report_checkpoint(self, job_id: str, checkpoint_id: str, metadata: Mapping[str, Any]) -> None:
        """A checkpoint was made."""
        event = {
            "artifactId": checkpoint_id,
            "step": metadata["step"],
            "completionPercentage": metadata["completion_percentage"],
            "modelCheckpointNames": metadata.get("model_checkpoint_names") or {},
            "userData": metadata.get("user_data"),
            "stageName": metadata.get("stage_name"),
        }
        self._report(job_id, {"reportCheckpoint": event})

    def register_job_artifact(
        self,
        job_id: str,
        artifact_id: str,
        name: str,
        kind: str,
        processing_mode: str,
        metadata: Mapping[str, Any],
        session_id: str | None,
    ) -> None:
        """The job made something."""
        event = {
            "artifactId": artifact_id,
            "name": name,
            "kind": _KINDS.get(kind, kind.upper()),
            "metadata": dict(metadata),
            "sessionId": session_id,
            "processingMode": processing_mode.upper(),
        }
        self._report(job_id, {"registerArtifact": event})

    def report_error(self, job_id: str, error: str) -> None:
        """The job failed."""
        self._report(job_id, {"reportError": {"error": error}})

    def complete_job(self, job_id: str) -> None:
        """The job succeeded."""
        self._report(job_id, {"complete": {}})

    def job_heartbeat(self, job_id: str, interval_seconds: float) -> None:
        """Tell every so many seconds, from a thread, that the job is alive."""
        self.stop_heartbeat()
        self._heartbeat = _Heartbeat(lambda: self._report(job_id, {"heartbeat": {}}), interval_seconds)

    def stop_heartbeat(self) -> None:
        """End it."""
        if self._heartbeat is not None:
            self._heartbeat.stop()
            self._heartbeat = None

    # ----------------------------------------------------------------------------------------------- asking

    def _dataset(self, dataset_key: str) -> dict[str, Any]:
        found: dict[str, Any] | None = self._ask(_DATASET, {"key": dataset_key, "project": self._project})["dataset"]
        if found is None:
            raise EntityNotFoundError(
                f"data set {dataset_key!r} does not exist in {self._project!r}; upload it there", entity="dataset"
            )
        return found

    def _report(self, job_id: str, event: dict[str, Any]) -> None:
        self._ask(_PROGRESS, {"job": job_id, "event": event})

    def _ask(self, query: str, variables: dict[str, Any]) -> dict[str, Any]:
        # Metadata may hold what JSON has no word for, such as a path.
        body = json.dumps({"query": query, "variables": variables, "operationName": None}, default=str)
        answer = self._send("POST", "api/graphql", content=body, headers={"Content-Type": "application/json"}).json()
        if answer.get("errors"):
            raise InvalidRequestError("; ".join(error["message"] for error in answer["errors"]))
        data: dict[str, Any] = answer["data"]
        return data

    def _send(self, method: str, path: str, **options: Any) -> httpx.Response:
        give_up_at, pause_s = time.monotonic() + _PATIENCE_S, _FIRST_PAUSE_S
        while True:
            try:
                answer = self._http.request(method, path, **options)
                if answer.status_code != 503:
                    _check(answer)
                    return answer
                reason = "it says that it is not ready (HTTP 503)"
            except httpx.TransportError as error:
                reason = str(error) or type(error).__name__
            if time.monotonic() + pause_s > give_up_at:
                raise UnavailableError(f"the control plane at {self._url} does not answer: {reason}")
            time.sleep(pause_s)
            pause_s = min(2 * pause_s, _LONGEST_PAUSE_S)


class _Words(msgspec.Struct):
    message: str


class _Problem(msgspec.Struct):
    """How the server tells of an error."""

    error: _Words


class _Heartbeat:
    def __init__(self, beat: Any, interval_s: float) -> None:
        self._beat = beat
        self._interval_s = interval_s
        self._stopped = threading.Event()
        self._thread = threading.Thread(target=self._run, name="heartbeat", daemon=True)
        self._thread.start()

    def stop(self) -> None:
        self._stopped.set()

    def _run(self) -> None:
        while not self._stopped.wait(self._interval_s):
            try:
                self._beat()
            except (InvalidRequestError, AuthenticationError, PermissionDeniedError, UnavailableError) as error:
                log.warning("the control plane was not told that the job is alive: %s", error.message)


def _check(answer: httpx.Response) -> None:
    if answer.is_success:
        return
    try:
        words = msgspec.json.decode(answer.content, type=_Problem).error.message
    except msgspec.DecodeError:
        words = answer.text[:500]
    what = f"{answer.request.method} {answer.request.url.path}: HTTP {answer.status_code} {words}"
    raise _REFUSALS.get(answer.status_code, InvalidRequestError)(f"the control plane refuses {what}")
