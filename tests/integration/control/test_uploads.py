"""Uploads in parts, as clients send them and as they should not."""

from __future__ import annotations

import asyncio
import contextlib
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

import httpx
import pytest
from sqlalchemy import select, update

from harmonia.config.control import ControlConfig, Files
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.database import Database
from harmonia.server.db.people import TeamMember, User
from harmonia.server.db.uploads import UploadSession
from harmonia.server.services import files as file_store
from harmonia.server.services.access import Access, Caller
from harmonia.server.services.datasets import uploads as upload_service
from harmonia.server.services.datasets.uploads import NewUpload, Uploads
from harmonia.server.services.people.people import People
from tests.integration.control.conftest import ADMIN, Plane

T = TypeVar("T")


@pytest.fixture
def http(plane: Plane) -> Iterator[httpx.Client]:
    with httpx.Client(
        base_url=f"{plane.url}/api/v1/upload", headers={"authorization": f"Bearer {plane.api_key}"}
    ) as client:
        yield client


def begin(http: httpx.Client, parts: int) -> str:
    answer = http.post(
        "/init", json={"content_type": "application/jsonl", "metadata": None, "total_parts_count": parts}
    )
    assert answer.status_code == 200, answer.text
    session_id: str = answer.json()["session_id"]
    return session_id


def send(http: httpx.Client, session_id: str, number: object, content: bytes) -> httpx.Response:
    return http.post(
        "/part",
        params={"session_id": session_id, "part_number": str(number)},
        content=content,
        headers={"content-type": "application/octet-stream"},
    )


def status(http: httpx.Client, session_id: str) -> dict[str, Any]:
    answer = http.post("/status", json={"session_id": session_id})
    assert answer.status_code == 200, answer.text
    body: dict[str, Any] = answer.json()
    return body


def message(answer: httpx.Response) -> str:
    text: str = answer.json()["error"]["message"]
    return text


def test_parts_come_in_any_order_and_may_be_replaced(plane: Plane, http: httpx.Client, tmp_path: Path) -> None:
    session_id = begin(http, 3)
    for number, content in ((3, b"three"), (1, b"wrong"), (1, b"one,")):
        assert send(http, session_id, number, content).json() == {"part_number": number, "size": len(content)}
    assert status(http, session_id) == {"completed_parts": [1, 3], "total_parts_count": 3}
    assert send(http, session_id, 2, b"two,").is_success

    async def take() -> bytes:
        config = ControlConfig(data_dir=tmp_path)
        database = Database(config.database_address)
        try:
            files = file_store.Files(config)
            caller = await only_user(database)
            name = await Uploads(config, database, files).take(caller, session_id)
            assert await files.parts(uuid.UUID(session_id)) == {}
            async with files.local(name) as path:
                return path.read_bytes()
        finally:
            await database.close()

    assert run(take()) == b"one,two,three"
    assert send(http, session_id, 1, b"late").status_code == 404
    assert "used already" in message(http.post("/status", json={"session_id": session_id}))


@pytest.mark.parametrize("number", [0, 4, -1, 10**20])
def test_numbers_beyond_the_total_are_refused(http: httpx.Client, number: int) -> None:
    answer = send(http, begin(http, 3), number, b"x")
    assert answer.status_code == 400
    assert "1 to 3" in message(answer)


@pytest.mark.parametrize(
    ("body", "says"),
    [
        ({"total_parts_count": 0}, "give 1 to 10000"),
        ({"total_parts_count": 10_001}, "give 1 to 10000"),
        ({"total_parts_count": "2"}, "total_parts_count"),
        ({}, "total_parts_count"),
        ({"total_parts_count": 1, "parts": 2}, "parts: unknown field"),
        ({"total_parts_count": 1, "content_type": "x" * 300}, "content_type has 300"),
    ],
)
def test_a_beginning_that_makes_no_sense_is_refused(http: httpx.Client, body: dict[str, Any], says: str) -> None:
    answer = http.post("/init", json=body)
    assert answer.status_code == 400
    assert says in message(answer)


def test_parts_are_neither_empty_nor_huge(http: httpx.Client, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(upload_service, "MAX_PART_BYTES", 3_000_000)
    session_id = begin(http, 1)
    assert "is empty" in message(send(http, session_id, 1, b""))
    answer = send(http, session_id, 1, bytes(3_000_001))
    assert answer.status_code == 413
    assert "cut the file into more parts" in message(answer)
    assert status(http, session_id)["completed_parts"] == []
    assert send(http, session_id, 1, bytes(3_000_000)).is_success


def test_an_abort_leaves_nothing(http: httpx.Client, tmp_path: Path) -> None:
    session_id = begin(http, 2)
    assert send(http, session_id, 2, b"x").is_success
    assert http.request("DELETE", "/abort", json={"session_id": session_id}).status_code == 204
    assert http.request("DELETE", "/abort", json={"session_id": session_id}).status_code == 404
    assert send(http, session_id, 1, b"x").status_code == 404
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []


@pytest.mark.parametrize("session_id", [str(uuid.UUID(int=7)), "../../etc/passwd", "", "\u0000", "x" * 10_000])
def test_unknown_sessions_are_not_found(http: httpx.Client, session_id: str) -> None:
    assert send(http, session_id, 1, b"x").status_code == 404
    assert http.post("/status", json={"session_id": session_id}).status_code == 404
    assert http.request("DELETE", "/abort", json={"session_id": session_id}).status_code == 404


def test_sessions_are_their_owners_alone(plane: Plane, http: httpx.Client) -> None:
    from adaptive_sdk import Adaptive

    admin = Adaptive(base_url=plane.url, api_key=plane.api_key)
    other = admin.users.create_service_account(name="bot", teams_with_role=[("default", "admin")])
    admin.close()
    session_id = begin(http, 1)
    headers = {"authorization": f"Bearer {other.api_key}"}
    with httpx.Client(base_url=http.base_url, headers=headers) as stranger:
        assert send(stranger, session_id, 1, b"x").status_code == 404
        assert stranger.post("/status", json={"session_id": session_id}).status_code == 404
        assert stranger.request("DELETE", "/abort", json={"session_id": session_id}).status_code == 404
    assert status(http, session_id)["completed_parts"] == []
    assert httpx.post(f"{plane.url}/api/v1/upload/init", json={"total_parts_count": 1}).status_code == 401


def test_who_could_use_no_upload_begins_none(plane: Plane) -> None:
    from adaptive_sdk import Adaptive

    with contextlib.closing(Adaptive(base_url=plane.url, api_key=plane.api_key)) as admin:
        admin.projects.create("lab", "Lab")
        admin.teams.create("guests", "Guests")
        guest = admin.users.create_service_account(name="guest", teams_with_role=[("guests", "inference")]).api_key

        def begun() -> int:
            headers = {"authorization": f"Bearer {guest}"}
            address = f"{plane.url}/api/v1/upload/init"
            return httpx.post(address, json={"total_parts_count": 1}, headers=headers).status_code

        assert begun() == 403
        admin.projects.share("lab", "guests", "power_user")
        assert begun() == 200


# ------------------------------------------------------------------------------------------------ without a server


async def test_what_nobody_goes_on_with_is_dropped(database: Database, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path, files=Files(upload_expiry_hours=1))
    files = file_store.Files(config)
    uploads = Uploads(config, database, files)
    caller = await new_user(database)
    old = await uploads.begin(caller, NewUpload(2))
    await uploads.put_part(caller, str(old.id), 1, once(b"x"))
    async with database.begin() as session:  # an hour later
        await session.execute(update(UploadSession).values(expires_at=UploadSession.expires_at - 3_600_000))
    with pytest.raises(EntityNotFoundError, match="expired"):
        await uploads.status(caller, str(old.id))
    fresh = await uploads.begin(caller, NewUpload(1))
    assert await uploads.sweep() == 1
    assert await files.parts(old.id) == {}
    async with database.read() as session:
        assert await session.get(UploadSession, fresh.id) is not None


async def test_what_one_account_may_leave_lying_has_a_limit(database: Database, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path, files=Files(max_unfinished_bytes=100, max_unfinished_uploads=3))
    files = file_store.Files(config)
    uploads = Uploads(config, database, files)
    caller, other = await new_user(database), await another_user(database)
    first, second = [await uploads.begin(caller, NewUpload(2)) for _ in range(2)]

    async def put(row: UploadSession, number: int, size: int, owner: Caller = caller) -> int:
        return await uploads.put_part(owner, str(row.id), number, once(b"x" * size))

    assert await put(first, 1, 60) == 60
    assert await put(first, 1, 40) == 40  # in its place
    assert await put(second, 1, 60) == 60
    for service in (uploads, Uploads(config, database, files)):  # and after another start
        with pytest.raises(InvalidRequestError, match="more than 100 bytes in unfinished uploads; finish them, abort"):
            await service.put_part(caller, str(second.id), 2, once(b"x"))
    theirs = await uploads.begin(other, NewUpload(1))
    assert await put(theirs, 1, 100, other) == 100
    await uploads.abort(caller, str(second.id))
    assert await put(first, 2, 60) == 60
    await uploads.take(caller, str(first.id))
    rows = [await uploads.begin(caller, NewUpload(2)) for _ in range(3)]
    with pytest.raises(InvalidRequestError, match=r"more than 3 files .*ADAPTIVE_FILES__MAX_UNFINISHED_UPLOADS"):
        await uploads.begin(caller, NewUpload(1))
    sizes = await asyncio.gather(*(put(row, 1, 40) for row in rows), return_exceptions=True)
    assert sizes.count(40) == 2  # those that come at the same time count, too
    with pytest.raises(InvalidRequestError, match="is empty"):
        await put(rows[0], 2, 0)
    async with database.begin() as session:
        await session.execute(update(UploadSession).values(expires_at=0))
    assert await uploads.sweep() == 4
    assert await put(await uploads.begin(caller, NewUpload(1)), 1, 100) == 100


async def test_missing_parts_are_named_and_nothing_is_taken_twice(database: Database, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path)
    uploads = Uploads(config, database, file_store.Files(config))
    caller = await new_user(database)
    row = await uploads.begin(caller, NewUpload(12))
    await uploads.put_part(caller, str(row.id), 2, once(b"x"))
    with pytest.raises(InvalidRequestError, match=r"11 of 12 parts are missing: 1, 3, 4, .*, \.\.\."):
        await uploads.take(caller, str(row.id))
    for number in range(1, 13):
        await uploads.put_part(caller, str(row.id), number, once(b"y"))
    taken = await asyncio.gather(*(uploads.take(caller, str(row.id)) for _ in range(3)), return_exceptions=True)
    assert sum(isinstance(name, str) for name in taken) == 1
    assert sum(isinstance(name, EntityNotFoundError) for name in taken) == 2


async def test_a_claimed_upload_is_assembled_again_after_a_crash(database: Database, tmp_path: Path) -> None:
    config = ControlConfig(data_dir=tmp_path)
    files = file_store.Files(config)
    uploads = Uploads(config, database, files)
    caller = await new_user(database)
    row = await uploads.begin(caller, NewUpload(1))
    await uploads.put_part(caller, str(row.id), 1, once(b"x"))
    async with database.begin() as session:
        claimed = await uploads.claim(session, caller, str(row.id))
    assert claimed.file is not None
    await files.put(claimed.file, once(b"half of it"))  # as a process that died would leave it
    for _ in range(2):
        await uploads.assemble(row.id)
    assert [block async for block in files.get(claimed.file)] == [b"x"]


async def test_the_store_takes_no_names_but_its_own(tmp_path: Path) -> None:
    files = file_store.Files(ControlConfig(data_dir=tmp_path))
    for name in ("../x", "data/../x", "/etc/passwd", "data/aa/x", "", "uploads/x/1", f"{file_store.new_name()}\n"):
        with pytest.raises(ValueError, match="is no name"):
            await files.put(name, once(b"x"))
        with pytest.raises(ValueError, match="is no name"):
            await files.size(name)


async def test_a_file_is_whole_or_not_there(tmp_path: Path) -> None:
    files = file_store.Files(ControlConfig(data_dir=tmp_path))
    name = file_store.new_name()

    async def broken() -> AsyncIterator[bytes]:
        yield bytes(20 << 20)
        raise RuntimeError("the client left")

    with pytest.raises(RuntimeError, match="the client left"):
        await files.put(name, broken())
    assert not await files.exists(name)
    assert [path for path in (tmp_path / "files").rglob("*") if path.is_file()] == []
    await files.put(name, once(b"x"))
    with pytest.raises(RuntimeError, match="the client left"):
        await files.put(name, broken())
    assert await files.size(name) == 1
    await files.delete(name, name)
    assert not await files.exists(name)


async def test_a_folder_by_address(tmp_path: Path) -> None:
    folder = tmp_path / "else where"
    files = file_store.Files(ControlConfig(data_dir=tmp_path, files=Files(url=f"file://{folder}")))
    await files.put(file_store.new_name(), once(b"x"))
    assert any(path.is_file() for path in folder.rglob("*"))


@pytest.mark.parametrize(
    "url", ["ftp://host/x", "nonsense", "s3://", "file://relative", "memory:///", "file:///proc/x"]
)
def test_addresses_that_hold_no_files_are_refused(tmp_path: Path, url: str) -> None:
    with pytest.raises(InvalidRequestError) as error:
        file_store.Files(ControlConfig(data_dir=tmp_path, files=Files(url=url)))
    assert error.value.details["field"] == "ADAPTIVE_FILES__URL"


@pytest.mark.parametrize("url", ["s3://bucket/folder", "gs://bucket"])
def test_clouds_are_opened_by_address(tmp_path: Path, url: str) -> None:
    assert file_store.Files(ControlConfig(data_dir=tmp_path, files=Files(url=url))) is not None


async def once(content: bytes) -> AsyncIterator[bytes]:
    yield content


async def new_user(database: Database) -> Caller:
    """Somebody who may upload."""
    api_key = await People(database).bootstrap(ADMIN)
    assert api_key is not None
    return await Access(database).caller(api_key)


async def another_user(database: Database) -> Caller:
    """Somebody else who may."""
    async with database.begin() as session:
        membership = (await session.execute(select(TeamMember))).scalars().first()
        assert membership is not None
        user = User(email="other@example.com", name="Other")
        session.add(user)
        await session.flush()
        session.add(TeamMember(user_id=user.id, team_id=membership.team_id, role_id=membership.role_id))
    return Caller(user.id, user.email)


async def only_user(database: Database) -> Caller:
    async with database.read() as session:
        user = (await session.execute(select(User))).scalar_one()
    return Caller(user.id, user.email)


def run(work: Coroutine[Any, Any, T]) -> T:
    """From a test that is not async, and beside whose loop others run."""
    with ThreadPoolExecutor(1) as pool:
        return pool.submit(asyncio.run, work).result(30)
