"""`python -m harmonia.fleet.hub`: brings a model of the Hugging Face hub into a folder.

An `Order` is read from standard input. Lines of JSON on standard output, each a `News`, say what will be fetched and
how it ended; what else is written is for the log. What is there already is not fetched again, and half of a file is
gone on with, so that whoever is killed is started again with the same order.
"""

from __future__ import annotations

import hashlib
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import msgspec
from huggingface_hub import HfApi, hf_hub_url
from huggingface_hub.errors import GatedRepoError, HfHubHTTPError, RepositoryNotFoundError

from harmonia.errors import HarmoniaError, InvalidRequestError, UnavailableError
from harmonia.fleet.orders import PART, News, Order
from harmonia.log import configure, get_logger
from harmonia.protocol.facts import Answer

log = get_logger(__name__)

_WEIGHTS, _GGUF = ".safetensors", ".gguf"
_PLAIN = (".json", ".jinja", ".txt", ".model", ".tiktoken")
"""Configurations, tokenizers and templates. What is not listed is not fetched: pickles run code when they are read."""
_NAME = re.compile(r"(additional_chat_templates/)?[A-Za-z0-9_][A-Za-z0-9_.+-]*")
_AT_ONCE = 4
_BLOCK_BYTES = 1 << 20
_TIMEOUT_S = 30.0
_ATTEMPTS = 5
"""That in a row bring nothing."""
_LONGEST_PAUSE_S = 8.0


@dataclass(frozen=True, slots=True)
class HubFile:
    """A file as the hub describes it."""

    name: str
    size: int
    digest: str
    """SHA-256 of large files, of others the SHA-1 of Git's object."""

    def hasher(self) -> Any:
        """To be fed with the content."""
        if len(self.digest) == 64:
            return hashlib.sha256()
        return hashlib.sha1(f"blob {self.size}\0".encode(), usedforsecurity=False)


@dataclass(frozen=True, slots=True)
class Snapshot:
    """A model at one revision."""

    hub_id: str
    revision: str
    files: Sequence[HubFile]

    @property
    def size(self) -> int:
        """In bytes."""
        return sum(file.size for file in self.files)


def split_id(hub_id: str) -> tuple[str, str | None]:
    """The repository and the GGUF file that an id names."""
    parts = hub_id.split("/")
    return (hub_id, None) if len(parts) < 3 else ("/".join(parts[:2]), "/".join(parts[2:]))


def look_up(order: Order) -> Snapshot:
    """The newest revision of a model with the files of it that are wanted.

    Errors: InvalidRequestError for a model that is not there, may not be read or cannot be used; UnavailableError for a
    hub that does not answer.
    """
    repo, gguf = split_id(order.hub_id)
    api = HfApi(endpoint=order.endpoint, token=order.token or False)
    try:
        info = api.model_info(repo, files_metadata=True, timeout=_TIMEOUT_S)
    except HfHubHTTPError as error:
        raise _refusal(order, repo, error) from error
    except Exception as error:
        log.exception("the hub did not answer")
        raise UnavailableError(
            f"the hub at {order.endpoint} cannot be reached ({type(error).__name__}: {error}); check this server's "
            "network, its proxy (HTTPS_PROXY) and the address (HF_ENDPOINT), or bring the model here as a folder and "
            "add that"
        ) from error
    files = [
        HubFile(item.rfilename, item.size or 0, item.blob_id or "" if item.lfs is None else item.lfs.sha256)
        for item in info.siblings or ()
    ]
    return Snapshot(repo, info.sha or "main", wanted(order.hub_id, files, gguf))


def wanted(hub_id: str, files: Sequence[HubFile], gguf: str | None = None) -> list[HubFile]:
    """Of the files of a model those that it is run with, small ones first: weights in one format, and what is read
    with them. gguf: the file to take of several."""
    usable = {file.name: file for file in files if _NAME.fullmatch(file.name)}
    if gguf is not None:
        if gguf not in usable or not gguf.endswith(_GGUF):
            raise InvalidRequestError(f"{hub_id}: there is no such GGUF file; {_ggufs(usable)}", field="modelId")
        return [usable[gguf]]
    weights = [name for name in usable if name.endswith(_WEIGHTS)]
    if weights:
        # Some offer the same weights a second time, in a format of their makers'.
        usual = [name for name in weights if name.startswith(("model", "adapter_model"))]
        names = [name for name in usable if name.endswith(_PLAIN) or name.startswith("LICENSE")]
        return sorted((usable[name] for name in [*names, *(usual or weights)]), key=lambda file: file.size)
    found = [name for name in usable if name.endswith(_GGUF)]
    if len(found) == 1:
        return [usable[found[0]]]
    if found:
        raise InvalidRequestError(
            f"{hub_id} holds several GGUF files; name one as {hub_id}/FILE. {_ggufs(usable)}", field="modelId"
        )
    raise InvalidRequestError(
        f"{hub_id} holds neither safetensors nor GGUF files; other weights, such as pickles, are not read since they "
        "may run code. Choose a model with safetensors, or convert it",
        field="modelId",
    )


def fetch(order: Order, snapshot: Snapshot) -> None:
    """Bring what is missing into the folder, and remove what is no part of the model.

    Errors: InvalidRequestError when the disk is too small, UnsupportedModelError when the model cannot be run,
    UnavailableError when the hub stops answering.
    """
    folder = Path(order.folder)
    folder.mkdir(parents=True, exist_ok=True)
    names = {file.name for file in snapshot.files}
    for path in [path for path in folder.rglob("*") if path.is_file()]:
        if str(path.relative_to(folder)).removesuffix(PART) not in names:
            path.unlink()
    _require_space(order, snapshot, folder)
    headers = {"User-Agent": "harmonia"} | ({"Authorization": f"Bearer {order.token}"} if order.token else {})
    with (
        httpx.Client(headers=headers, timeout=_TIMEOUT_S, follow_redirects=True) as client,
        ThreadPoolExecutor(_AT_ONCE) as pool,
    ):

        def bring(file: HubFile) -> None:
            url = hf_hub_url(snapshot.hub_id, file.name, revision=snapshot.revision, endpoint=order.endpoint)
            _bring(client, url, file, folder / file.name)

        weights = [file for file in snapshot.files if file.name.endswith((_WEIGHTS, _GGUF))]
        _all(pool, bring, [file for file in snapshot.files if file not in weights])
        _check_config(folder)
        _all(pool, bring, weights)


def _all(pool: ThreadPoolExecutor, bring: Callable[[HubFile], None], files: Sequence[HubFile]) -> None:
    tasks = [pool.submit(bring, file) for file in files]
    try:
        for task in tasks:
            task.result()
    except BaseException:
        pool.shutdown(wait=False, cancel_futures=True)
        raise


def _check_config(folder: Path) -> None:
    """Nobody shall wait for weights that cannot be used. Errors: UnsupportedModelError."""
    command = [sys.executable, "-P", "-m", "harmonia.models.facts", str(folder)]
    found = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, check=False)
    if found.returncode:
        raise UnavailableError(f"{folder / 'config.json'} could not be read; the job's log says why")
    answer = msgspec.json.decode(found.stdout, type=Answer)
    if answer.failure is not None:
        raise answer.failure.error()


def _bring(client: httpx.Client, url: str, file: HubFile, path: Path) -> None:
    """One file, whole and as the hub describes it."""
    if path.exists() and _digest(file, path) == file.digest:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + PART)
    failures = 0
    while True:
        had = part.stat().st_size if part.exists() else 0
        try:
            _continue(client, url, file, part)
            break
        except (httpx.HTTPError, UnavailableError) as error:
            failures = failures + 1 if part.exists() and part.stat().st_size == had else 1
            log.warning("%s broke off: %s: %s", file.name, type(error).__name__, error)
            if failures == _ATTEMPTS:
                raise UnavailableError(
                    f"the hub stopped answering while {file.name} came ({type(error).__name__}: {error}); what came is "
                    "kept, so import the model again under the same key to go on"
                ) from error
            time.sleep(min(_LONGEST_PAUSE_S, 0.25 * 2**failures))
    if _digest(file, part) != file.digest:
        part.unlink()
        raise UnavailableError(f"{file.name} is not what the hub says it is; import the model again")
    part.replace(path)
    log.info("%s: %d bytes", file.name, file.size)


def _continue(client: httpx.Client, url: str, file: HubFile, part: Path) -> None:
    had = part.stat().st_size if part.exists() else 0
    if had > file.size:
        part.unlink()
        had = 0
    if had == file.size and part.exists():
        return
    headers = {"Range": f"bytes={had}-", "Accept-Encoding": "identity"} if had else {"Accept-Encoding": "identity"}
    with client.stream("GET", url, headers=headers) as answer:
        if answer.headers.get("x-error-code") == "GatedRepo":
            raise _gated(url.partition("/resolve/")[0])
        if answer.status_code in (401, 403, 404):
            raise InvalidRequestError(
                f"the hub refuses {file.name} (HTTP {answer.status_code}); give an hf_token that may read it",
                field="hfToken",
            )
        if answer.status_code not in (200, 206):
            raise UnavailableError(f"HTTP {answer.status_code}")
        # A server that does not know ranges sends the whole file again.
        with part.open("ab" if answer.status_code == 206 else "wb") as target:
            for block in answer.iter_raw():
                target.write(block)


def _digest(file: HubFile, path: Path) -> str:
    hasher = file.hasher()
    with path.open("rb") as content:
        while block := content.read(_BLOCK_BYTES):
            hasher.update(block)
    return str(hasher.hexdigest())


def _require_space(order: Order, snapshot: Snapshot, folder: Path) -> None:
    there = sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    needed = max(0, snapshot.size - there) + order.spare_bytes
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise InvalidRequestError(
            f"{order.hub_id} needs {needed / 1e9:.1f} GB of disk with what must stay free, and {free / 1e9:.1f} GB are "
            f"free in {folder.parent}; make room, or let ADAPTIVE_MODEL_REGISTRY name a folder on a larger disk"
        )


def _refusal(order: Order, repo: str, error: HfHubHTTPError) -> HarmoniaError:
    status = error.response.status_code
    if isinstance(error, GatedRepoError):
        return _gated(f"{order.endpoint}/{repo}")
    if isinstance(error, RepositoryNotFoundError):
        whose = "that this token may read" if order.token else "that can be read without a token"
        return InvalidRequestError(
            f"the hub at {order.endpoint} has no model {repo!r} {whose}; check the id, and give an hf_token with "
            "access if it is private",
            field="modelId",
        )
    if status in (401, 403):
        return InvalidRequestError(
            f"the hub refuses the token (HTTP {status}); make a new one with read access at {order.endpoint}"
            "/settings/tokens",
            field="hfToken",
        )
    return UnavailableError(f"the hub at {order.endpoint} answers HTTP {status}; try again later")


def _gated(page: str) -> HarmoniaError:
    return InvalidRequestError(
        f"the model is gated: accept its terms at {page}, and give an hf_token of the account that did", field="hfToken"
    )


def _ggufs(files: Sequence[str] | dict[str, HubFile]) -> str:
    found = ", ".join(sorted(name for name in files if name.endswith(_GGUF)))
    return f"It has {found}" if found else "It has none"


def _tell(news: News) -> None:
    sys.stdout.buffer.write(msgspec.json.encode(news) + b"\n")
    sys.stdout.buffer.flush()


def main() -> None:
    """Fill an order."""
    order = msgspec.json.decode(sys.stdin.buffer.read(), type=Order)
    configure(style="text")
    try:
        snapshot = look_up(order)
        log.info("%s is at revision %s: %d files", order.hub_id, snapshot.revision, len(snapshot.files))
        _tell(News(total_bytes=snapshot.size))
        fetch(order, snapshot)
    except HarmoniaError as error:
        _tell(News(error=error.message))
        return
    except OSError as error:
        _tell(News(error=f"{error.strerror or error}: {error.filename or order.folder}"))
        return
    _tell(News(is_done=True))


if __name__ == "__main__":
    main()
