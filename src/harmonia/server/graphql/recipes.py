"""Recipes of projects."""

from __future__ import annotations

import uuid

import strawberry
from starlette.datastructures import UploadFile
from strawberry.file_uploads import Upload
from strawberry.scalars import JSON

from harmonia.errors import InvalidRequestError
from harmonia.server.graphql.context import Info
from harmonia.server.graphql.paging import Label, LabelFilter, LabelInput
from harmonia.server.graphql.people import User
from harmonia.server.graphql.scalars import IdOrKey, Key, Timestamp
from harmonia.server.services.jobs import recipes as service
from harmonia.server.services.jobs.archives import MAX_FILES, MAX_UPLOAD_BYTES


@strawberry.type
class CustomRecipe:
    """A program that trains or evaluates."""

    id: uuid.UUID
    key: str | None
    name: str
    is_multifile: bool
    entrypoint: str | None
    config_entrypoint: str | None
    editable: bool
    hidden: bool
    builtin: bool
    global_: bool = strawberry.field(name="global")
    created_at: Timestamp
    content_files: list[str] | None
    input_schema: JSON
    json_schema: JSON
    content_hash: str
    description: str
    updated_at: Timestamp | None
    created_by: User | None
    deleted_at: Timestamp | None
    download_url: str | None
    all_labels: strawberry.Private[service.Labels]

    @classmethod
    def of(cls, info: service.RecipeInfo, project: str) -> CustomRecipe:
        """From what the service knows; project: the id or key by which it was found."""
        is_built_in = info.project_id is None
        return cls(
            id=info.id,
            key=info.key,
            name=info.name,
            is_multifile=len(info.files) > 1,
            entrypoint=info.entrypoint,
            config_entrypoint=info.config_entrypoint,
            editable=not is_built_in and info.deleted_at is None,
            hidden=False,
            builtin=is_built_in,
            global_=is_built_in,
            created_at=Timestamp(info.created_at),
            content_files=list(info.files),
            input_schema=JSON(info.json_schema),
            json_schema=JSON(info.json_schema),
            content_hash=info.content_hash,
            description=info.description,
            updated_at=None if info.updated_at is None else Timestamp(info.updated_at),
            created_by=None if info.created_by is None else User.of(info.created_by),
            deleted_at=None if info.deleted_at is None else Timestamp(info.deleted_at),
            download_url=None if info.key is None else f"/api/v1/projects/{project}/recipes/{info.key}/download",
            all_labels=info.labels,
        )

    @strawberry.field
    async def content(self, info: Info, file_entry: str | None = None) -> str | None:
        """The text of a file, of the entrypoint unless another is named; null if there is none or it is no text."""
        files = await info.context.services.recipes.contents(self.content_hash)
        content = files.get(file_entry or self.entrypoint or "")
        try:
            return None if content is None else content.decode("utf-8-sig")
        except UnicodeDecodeError:
            return None

    @strawberry.field
    def labels(self, with_protected: bool = False) -> list[Label]:
        """What it is labelled with. No labels are protected, so the switch changes nothing."""
        return [Label(key=key, value=value) for key, value in self.all_labels]


@strawberry.input
class CreateRecipeInput:
    """A new recipe."""

    name: str
    key: Key | None = None
    description: str | None = None
    labels: list[LabelInput] | None = None
    entrypoint: str | None = None
    config_entrypoint: str | None = None


@strawberry.input
class UpdateRecipeInput:
    """What shall change; null leaves a value as it is."""

    name: str | None = None
    description: str | None = None
    labels: list[LabelInput] | None = None
    entrypoint: str | None = None
    config_entrypoint: str | None = None


@strawberry.input
class PatchRecipeInput:
    """Which files shall be gone, by their paths in the recipe."""

    files_to_delete: list[str] | None = None


@strawberry.input
class DuplicateRecipeInput:
    """What the copy shall be called; null: as the other one, with `(copy)`."""

    name: str | None = None
    key: Key | None = None
    description: str | None = None


@strawberry.input
class CustomRecipeFilterInput:
    """Which recipes are wanted."""

    labels: list[LabelFilter] | None = None


@strawberry.type
class RecipeQuery:
    """Recipes."""

    @strawberry.field
    async def custom_recipes(
        self, info: Info, project: IdOrKey, filter: CustomRecipeFilterInput | None = None
    ) -> list[CustomRecipe]:
        """Those of a project, and those that are built in."""
        labels = [] if filter is None or filter.labels is None else filter.labels
        wanted = [(item.key, item.value) for item in labels]
        found = await info.context.services.recipes.all(info.context.caller, project, wanted)
        return [CustomRecipe.of(item, project) for item in found]

    @strawberry.field
    async def custom_recipe(self, info: Info, id_or_key: IdOrKey, project: IdOrKey) -> CustomRecipe | None:
        """One of them."""
        found = await info.context.services.recipes.find(info.context.caller, project, id_or_key)
        return None if found is None else CustomRecipe.of(found, project)

    @strawberry.field
    async def parse_recipe_schema(self, info: Info, recipe_content: str) -> JSON:
        """The JSON schema of the input of a recipe of one Python file, which is tried and not kept."""
        return JSON(await info.context.services.recipes.parse(info.context.caller, recipe_content))


@strawberry.type
class RecipeMutation:
    """Changing recipes."""

    @strawberry.mutation
    async def create_custom_recipe(
        self, info: Info, project: IdOrKey, input: CreateRecipeInput, file: Upload
    ) -> CustomRecipe:
        """From a `.py` file, or from a zip of a folder."""
        recipes, upload = info.context.services.recipes, await _upload(file)
        made = await recipes.create(info.context.caller, project, input.key, _wish(input), upload)
        return CustomRecipe.of(made, project)

    @strawberry.mutation
    async def update_custom_recipe(
        self, info: Info, project: IdOrKey, id: IdOrKey, input: UpdateRecipeInput, file: Upload | None = None
    ) -> CustomRecipe:
        """Without a file the code stays."""
        upload = None if file is None else await _upload(file)
        changed = await info.context.services.recipes.update(info.context.caller, project, id, _wish(input), upload)
        return CustomRecipe.of(changed, project)

    @strawberry.mutation
    async def patch_custom_recipe(
        self, info: Info, project: IdOrKey, id: IdOrKey, input: PatchRecipeInput, files: list[Upload]
    ) -> CustomRecipe:
        """Add, replace and remove single files; the name of each is its path in the recipe."""
        if len(files) > MAX_FILES:
            raise InvalidRequestError(f"files: at most {MAX_FILES} at a time, got {len(files)}", field="files")
        uploads = [await _upload(file) for file in files]
        changed = await info.context.services.recipes.patch(
            info.context.caller, project, id, uploads, input.files_to_delete or ()
        )
        return CustomRecipe.of(changed, project)

    @strawberry.mutation
    async def duplicate_custom_recipe(
        self, info: Info, project: IdOrKey, id: IdOrKey, input: DuplicateRecipeInput
    ) -> CustomRecipe:
        """A copy of a recipe that can be changed, of a built-in one too."""
        wish = service.RecipeChange(name=input.name, description=input.description)
        made = await info.context.services.recipes.duplicate(info.context.caller, project, id, input.key, wish)
        return CustomRecipe.of(made, project)

    @strawberry.mutation
    async def delete_custom_recipe(self, info: Info, project: IdOrKey, id: IdOrKey) -> bool:
        """Jobs that were made with it stay."""
        await info.context.services.recipes.delete(info.context.caller, project, id)
        return True


def _wish(given: CreateRecipeInput | UpdateRecipeInput) -> service.RecipeChange:
    labels = None if given.labels is None else [(item.key, item.value) for item in given.labels]
    return service.RecipeChange(given.name, given.description, labels, given.entrypoint, given.config_entrypoint)


async def _upload(file: object) -> service.Upload:
    if not isinstance(file, UploadFile):
        raise InvalidRequestError("send the recipe's file as a multipart request", field="file")
    try:
        return service.Upload(file.filename or "main.py", await file.read(MAX_UPLOAD_BYTES + 1))
    finally:
        await file.close()
