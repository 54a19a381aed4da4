"""Recipes of projects: brought by people, or built in."""

from __future__ import annotations

import ast
import asyncio
import contextlib
import uuid
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path, PurePosixPath
from typing import Any

from sqlalchemy import select
from sqlalchemy.exc import IntegrityError
from sqlalchemy.ext.asyncio import AsyncSession

import harmonia
from harmonia.errors import EntityNotFoundError, InvalidRequestError
from harmonia.server.db.base import MAX_KEY, now_ms
from harmonia.server.db.database import Database
from harmonia.server.db.jobs import Job
from harmonia.server.db.people import User
from harmonia.server.db.recipes import Recipe, RecipeCode
from harmonia.server.services.access import Caller, by_id_or_key, require_in_project, require_somewhere
from harmonia.server.services.audit import record
from harmonia.server.services.jobs.archives import Files, content_hash, pack, patched, read_upload, unpack
from harmonia.server.services.jobs.recipe_probe import RecipeProbe
from harmonia.server.services.keys import checked_key, key_from

ENTRYPOINT = "main.py"
_BUILT_IN = Path(harmonia.__file__).parent / "recipes"
_NAMESPACE = uuid.UUID("6d0ce2be-6f6e-5e0c-9a0e-3f2d1f6b1a77")
"""Built-in recipes have the same ids everywhere."""
_MAX_LABELS = 100

Labels = Sequence[tuple[str, str]]


@dataclass(frozen=True, slots=True)
class Upload:
    """A file that somebody sent: a `.py` file, or a zip of a folder."""

    name: str
    content: bytes


@dataclass(frozen=True, slots=True)
class RecipeChange:
    """What a recipe shall be. None leaves a value as it is, or takes the default for a new one."""

    name: str | None = None
    description: str | None = None
    labels: Labels | None = None
    entrypoint: str | None = None
    config_entrypoint: str | None = None


@dataclass(frozen=True, slots=True)
class RecipeInfo:
    """A recipe, of whichever kind."""

    id: uuid.UUID
    key: str | None
    name: str
    description: str
    labels: Labels
    content_hash: str
    files: tuple[str, ...]
    entrypoint: str
    json_schema: Mapping[str, Any]
    created_at: int
    config_entrypoint: str | None = None
    updated_at: int | None = None
    deleted_at: int | None = None
    created_by: User | None = None
    project_id: uuid.UUID | None = None
    """None: built in, and there in every project."""


@dataclass(frozen=True, slots=True)
class _BuiltIn:
    info: RecipeInfo
    contents: Files = field(repr=False)


class Recipes:
    """Everything about recipes except running them."""

    def __init__(self, database: Database, cache: Path) -> None:
        """cache: a folder for what recipes depend on."""
        self._database = database
        self.probe = RecipeProbe(cache)
        self._built_in: dict[str, _BuiltIn] = {}
        self._reading = asyncio.Lock()

    # ------------------------------------------------------------------------------------------------- reading

    async def all(
        self, caller: Caller, project: str, labels: Sequence[tuple[str, Sequence[str] | None]] = ()
    ) -> list[RecipeInfo]:
        """Those of a project, built-in ones first. labels: only with these keys, and one of the values if any."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            query = (
                select(Recipe, User)
                .outerjoin(User, User.id == Recipe.created_by)
                .where(Recipe.project_id == access.project_id, Recipe.deleted_at.is_(None))
                .order_by(Recipe.created_at, Recipe.key)
            )
            own = [_info(row, user) for row, user in (await session.execute(query)).all()]
        built_in = [item.info for item in (await self._all_built_in()).values()]
        return [info for info in (*built_in, *own) if all(_has_label(info, *wanted) for wanted in labels)]

    async def find(self, caller: Caller, project: str, recipe: str) -> RecipeInfo | None:
        """One by id or key; None if the project has none."""
        async with self._database.read() as session:
            access = await require_in_project(session, caller, project, "project:read")
            row = await _row(session, access.project_id, recipe)
            if row is not None:
                creator = None if row.created_by is None else await session.get(User, row.created_by)
                return _info(row, creator)
        built_in = await self._find_built_in(recipe)
        return None if built_in is None else built_in.info

    async def known(self, ids: Sequence[uuid.UUID]) -> dict[uuid.UUID, RecipeInfo]:
        """Recipes by id for who may see them already, deleted ones too."""
        async with self._database.read() as session:
            query = select(Recipe, User).outerjoin(User, User.id == Recipe.created_by).where(Recipe.id.in_(ids))
            found = {row.id: _info(row, user) for row, user in (await session.execute(query)).all()}
        built_in = {item.info.id: item.info for item in (await self._all_built_in()).values()}
        return {**{key: info for key, info in built_in.items() if key in ids}, **found}

    async def contents(self, hash_: str) -> Files:
        """The files of a version."""
        async with self._database.read() as session:
            code = await session.get(RecipeCode, hash_)
        if code is not None:
            return unpack(code.archive)
        for built_in in (await self._all_built_in()).values():
            if built_in.info.content_hash == hash_:
                return built_in.contents
        raise EntityNotFoundError("the code of this recipe is gone", entity="recipe")

    async def archive(self, caller: Caller, project: str, recipe: str) -> bytes:
        """The zip of a recipe; a job gets the version that it was made with."""
        hash_ = await self._job_version(caller, recipe)
        if hash_ is None:
            info = await self.find(caller, project, recipe)
            if info is None:
                raise _not_found(recipe)
            hash_ = info.content_hash
        return pack(await self.contents(hash_))

    async def _job_version(self, caller: Caller, recipe: str) -> str | None:
        if caller.job_id is None:
            return None
        async with self._database.read() as session:
            job = await session.get(Job, caller.job_id)
        is_its_own = job is not None and recipe in (job.recipe_key, str(job.recipe_id))
        return job.content_hash if job is not None and is_its_own else None

    # ------------------------------------------------------------------------------------------------ changing

    async def create(
        self, caller: Caller, project: str, key: str | None, wish: RecipeChange, upload: Upload
    ) -> RecipeInfo:
        """A recipe of a project; its code is imported, in a process of its own, to see what it takes."""
        await self._require(caller, project)
        name = (wish.name or "").strip() or PurePosixPath(upload.name).stem
        row = Recipe(key=await self._free_key(key, name), name=_checked_name(name), description=wish.description or "")
        row.labels = _checked_labels(wish.labels or ())
        files = await asyncio.to_thread(read_upload, upload.name, upload.content)
        await self._set_code(row, files, wish)
        return await self._add(caller, project, row, files)

    async def update(
        self, caller: Caller, project: str, recipe: str, change: RecipeChange, upload: Upload | None
    ) -> RecipeInfo:
        """Change what is given. Jobs that exist keep the code that they were made with."""
        if upload is not None:
            return await self._change(
                caller, project, recipe, change, lambda _: read_upload(upload.name, upload.content)
            )
        is_read_anew = change.entrypoint is not None or change.config_entrypoint is not None
        return await self._change(caller, project, recipe, change, dict if is_read_anew else None)

    async def patch(
        self, caller: Caller, project: str, recipe: str, uploads: Sequence[Upload], gone: Sequence[str] = ()
    ) -> RecipeInfo:
        """Add or replace files, each named by its path in the recipe, and remove those that are `gone`."""
        if not uploads and not gone:
            raise InvalidRequestError("give files to add or to replace, or paths to delete", field="files")
        named = [(upload.name, upload.content) for upload in uploads]
        return await self._change(caller, project, recipe, RecipeChange(), lambda files: patched(files, named, gone))

    async def duplicate(
        self, caller: Caller, project: str, recipe: str, key: str | None, wish: RecipeChange
    ) -> RecipeInfo:
        """A copy to be changed, of a built-in recipe too. Without a name it is called as the other, with `(copy)`."""
        await self._require(caller, project)
        source = await self.find(caller, project, recipe)
        if source is None:
            raise _not_found(recipe)
        name = _checked_name(wish.name or f"{source.name} (copy)")
        files = await self.contents(source.content_hash)
        row = Recipe(
            key=await self._free_key(key, name),
            name=name,
            description=source.description if wish.description is None else wish.description,
            labels=[list(label) for label in source.labels],
            content_hash=source.content_hash,
            files=sorted(source.files),
            entrypoint=source.entrypoint,
            config_entrypoint=source.config_entrypoint,
            json_schema=dict(source.json_schema),
        )
        return await self._add(caller, project, row, files)

    async def parse(self, caller: Caller, text: str) -> dict[str, Any]:
        """The JSON schema of the input of a recipe of one file, which is not kept; needs `project:adapt` somewhere."""
        async with self._database.read() as session:
            await require_somewhere(session, caller, "project:adapt")
        return await self.probe.schema(read_upload(ENTRYPOINT, text.encode("utf-8", "replace")), ENTRYPOINT)

    async def _change(
        self,
        caller: Caller,
        project: str,
        recipe: str,
        change: RecipeChange,
        rewrite: Callable[[Files], Files] | None,
    ) -> RecipeInfo:
        """rewrite: makes the new files of those that there are, in a thread; None: the code stays."""
        await self._require(caller, project)
        before = await self.find(caller, project, recipe)
        if before is None:
            raise _not_found(recipe)
        _require_own(before)
        code = Recipe(entrypoint=before.entrypoint, config_entrypoint=before.config_entrypoint)
        files: Files = {}
        if rewrite is not None:
            files = await asyncio.to_thread(rewrite, await self.contents(before.content_hash))
            await self._set_code(code, files, change)
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            row = await _row(session, access.project_id, str(before.id))
            if row is None:
                raise _not_found(recipe)
            if rewrite is not None:
                if row.content_hash != before.content_hash:
                    raise InvalidRequestError(f"{row.key!r} got other code meanwhile; look at it, and try again")
                await _keep_code(session, code.content_hash, files)
                row.content_hash, row.files, row.json_schema = code.content_hash, code.files, code.json_schema
                row.entrypoint, row.config_entrypoint = code.entrypoint, code.config_entrypoint
            row.name = row.name if change.name is None else _checked_name(change.name)
            row.description = row.description if change.description is None else change.description
            row.labels = row.labels if change.labels is None else _checked_labels(change.labels)
            row.updated_at = now_ms()
            record(session, caller, "recipe.update", f"recipe/{row.key}", project=access.project_key)
            return _info(row, before.created_by)

    async def delete(self, caller: Caller, project: str, recipe: str) -> None:
        """Nobody finds it any longer; jobs that were made with it keep its code."""
        found = await self.find(caller, project, recipe)
        if found is not None:
            _require_own(found)
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            row = await _row(session, access.project_id, recipe)
            if row is None:
                raise _not_found(recipe)
            record(session, caller, "recipe.delete", f"recipe/{row.key}", project=access.project_key)
            row.key, row.deleted_at = None, now_ms()

    async def keep(self, session: AsyncSession, info: RecipeInfo) -> None:
        """Keep the code of a built-in recipe as well, for a job that will run it in this version."""
        if info.project_id is None:
            await _keep_code(session, info.content_hash, await self.contents(info.content_hash))

    async def _free_key(self, key: str | None, name: str) -> str:
        """A key that no built-in recipe has. None makes one of the name."""
        key = checked_key(key) if key else key_from(name)
        if await self._find_built_in(key) is not None:
            raise InvalidRequestError(f"{key!r} is the key of a built-in recipe; choose another", field="key")
        return key

    async def _add(self, caller: Caller, project: str, row: Recipe, files: Files) -> RecipeInfo:
        """Keep a new recipe with its code."""
        async with self._database.begin() as session:
            access = await require_in_project(session, caller, project, "project:adapt")
            if await _row(session, access.project_id, str(row.key)) is not None:
                raise InvalidRequestError(
                    f"the key {row.key!r} is taken; choose another, or update that one", field="key"
                )
            row.project_id, row.created_by = access.project_id, caller.user_id
            await _keep_code(session, row.content_hash, files)
            session.add(row)
            record(session, caller, "recipe.create", f"recipe/{row.key}", project=access.project_key)
            await session.flush()
            return _info(row, await session.get(User, caller.user_id))

    async def _require(self, caller: Caller, project: str) -> None:
        """Before anything costly."""
        async with self._database.read() as session:
            await require_in_project(session, caller, project, "project:adapt")

    async def _set_code(self, row: Recipe, files: Files, wish: RecipeChange) -> None:
        only = next(iter(files)) if len(files) == 1 else None
        default = row.entrypoint if row.entrypoint in files else ENTRYPOINT if ENTRYPOINT in files else only
        row.entrypoint = _entrypoint(files, wish.entrypoint, default)
        row.config_entrypoint = wish.config_entrypoint or row.config_entrypoint
        if wish.config_entrypoint is not None and wish.config_entrypoint not in files:
            raise InvalidRequestError(
                f"there is no file {wish.config_entrypoint!r} in the recipe", field="configEntrypoint"
            )
        row.files, row.content_hash = sorted(files), content_hash(files)
        row.json_schema = await self.probe.schema(files, row.entrypoint)

    # ------------------------------------------------------------------------------------------------ built in

    async def _find_built_in(self, recipe: str) -> _BuiltIn | None:
        for key, item in (await self._all_built_in()).items():
            if recipe in (key, str(item.info.id)):
                return item
        return None

    async def _all_built_in(self) -> dict[str, _BuiltIn]:
        """Read once: they change with the program only."""
        async with self._reading:
            if not self._built_in:
                folders = [file.parent for file in sorted(_BUILT_IN.glob(f"*/{ENTRYPOINT}"))]
                found = await asyncio.gather(*map(self._read_built_in, folders))
                self._built_in = {folder.name: item for folder, item in zip(folders, found, strict=True)}
        return self._built_in

    async def _read_built_in(self, folder: Path) -> _BuiltIn:
        item = await asyncio.to_thread(_read_built_in, folder)
        schema = await self.probe.schema(item.contents, ENTRYPOINT)
        return _BuiltIn(replace(item.info, json_schema=schema), item.contents)


def _read_built_in(folder: Path) -> _BuiltIn:
    files = {
        path.relative_to(folder).as_posix(): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and "__pycache__" not in path.parts
    }
    said = ast.get_docstring(ast.parse(files.get("__init__.py", b""))) or folder.name
    title = said.partition("\n")[0].partition(":")[0]
    info = RecipeInfo(
        id=uuid.uuid5(_NAMESPACE, folder.name),
        key=folder.name,
        name=title,
        description=said,
        labels=(),
        content_hash=content_hash(files),
        files=tuple(files),
        entrypoint=ENTRYPOINT,
        json_schema={},
        created_at=round((folder / ENTRYPOINT).stat().st_mtime * 1000),
    )
    return _BuiltIn(info, files)


def _info(row: Recipe, creator: User | None) -> RecipeInfo:
    return RecipeInfo(
        id=row.id,
        key=row.key,
        name=row.name,
        description=row.description,
        labels=[(key, value) for key, value in row.labels],
        content_hash=row.content_hash,
        files=tuple(row.files),
        entrypoint=row.entrypoint,
        json_schema=row.json_schema,
        created_at=row.created_at,
        config_entrypoint=row.config_entrypoint,
        updated_at=row.updated_at,
        deleted_at=row.deleted_at,
        created_by=creator,
        project_id=row.project_id,
    )


async def _row(session: AsyncSession, project_id: uuid.UUID, recipe: str) -> Recipe | None:
    query = select(Recipe).where(
        Recipe.project_id == project_id,
        Recipe.deleted_at.is_(None),
        by_id_or_key(Recipe.id, Recipe.key, recipe),  # type: ignore[arg-type]  # a key is null only once deleted
    )
    found: Recipe | None = (await session.execute(query)).scalar_one_or_none()
    return found


async def _keep_code(session: AsyncSession, hash_: str, files: Files) -> None:
    if await session.get(RecipeCode, hash_) is not None:
        return
    archive = await asyncio.to_thread(pack, files)
    with contextlib.suppress(IntegrityError):  # somebody else keeps the same code at this moment
        async with session.begin_nested():
            session.add(RecipeCode(content_hash=hash_, archive=archive))


def _entrypoint(files: Files, wanted: str | None, default: str | None) -> str:
    if wanted is None and default is None:
        raise InvalidRequestError(
            f"there is no {ENTRYPOINT} in the recipe; add one, or name another file as entrypoint", field="entrypoint"
        )
    entrypoint = wanted or default or ""
    if entrypoint not in files or not entrypoint.endswith(".py"):
        raise InvalidRequestError(f"there is no Python file {entrypoint!r} in the recipe", field="entrypoint")
    return entrypoint


def _has_label(info: RecipeInfo, key: str, values: Sequence[str] | None) -> bool:
    return any(name == key and (not values or value in values) for name, value in info.labels)


def _checked_labels(labels: Labels) -> list[list[str]]:
    if len(labels) > _MAX_LABELS or any(not key or len(key) + len(value) > MAX_KEY for key, value in labels):
        raise InvalidRequestError(
            f"labels have a key, are at most {MAX_KEY} characters long, and there are at most {_MAX_LABELS}",
            field="labels",
        )
    return [[key, value] for key, value in labels]


def _checked_name(name: str) -> str:
    if not name.strip() or len(name) > MAX_KEY:
        raise InvalidRequestError(f"a name has 1 to {MAX_KEY} characters, got {len(name)}", field="name")
    return name


def _require_own(info: RecipeInfo) -> None:
    if info.project_id is None:
        raise InvalidRequestError(f"{info.key!r} is built in and cannot be changed; upload a copy", field="id")


def _not_found(recipe: str) -> EntityNotFoundError:
    return EntityNotFoundError(f"Recipe {recipe!r} does not exist", entity="recipe")
