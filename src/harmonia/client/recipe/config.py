"""A recipe's input, and how a recipe is launched."""

from __future__ import annotations

import types
from pathlib import Path
from typing import Annotated, Any, ClassVar, Literal, Self, Union, get_args, get_origin

from pydantic import BaseModel, ConfigDict, Field, GetCoreSchemaHandler
from pydantic_core import CoreSchema
from pydantic_settings import BaseSettings, SettingsConfigDict

_VARIANT = "union_variant"


class InputConfig(BaseModel):
    """The input of a recipe: subclass it and declare fields; `Annotated[int, Field(title=..., description=...)]`.

    Each subclass has one more field, `union_variant`, whose only value is the name of the class. It decides between the
    members of a union of configs (`optimizer: Adam | Sgd`), and has to be given there. Unknown fields are refused.
    """

    model_config = ConfigDict(extra="forbid")

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if _VARIANT not in cls.__annotations__:
            cls.__annotations__[_VARIANT] = Literal[cls.__name__]
            setattr(cls, _VARIANT, cls.__name__)

    @classmethod
    def __get_pydantic_core_schema__(cls, source: Any, handler: GetCoreSchemaHandler) -> CoreSchema:
        for field in cls.__pydantic_fields__.values():
            field.annotation = _discriminated(field.annotation)
        return handler(source)

    @classmethod
    def load_from_file(cls, json_file: str | Path) -> Self:
        """Read the config from a file of JSON."""
        return cls.model_validate_json(Path(json_file).read_bytes())


def _discriminated(annotation: Any) -> Any:
    """The annotation with every union of configs inside it told apart by `union_variant`."""
    origin, members = get_origin(annotation), get_args(annotation)
    if origin in (Literal, None):
        return annotation
    if origin is Annotated:
        if any(getattr(note, "discriminator", None) for note in members[1:]):
            return annotation  # told apart already: by the author, or by us when pydantic builds the class again
        return Annotated[(_discriminated(members[0]), *members[1:])]
    members = tuple(_discriminated(member) for member in members)
    if origin not in (Union, types.UnionType):
        return origin[members] if members != get_args(annotation) else annotation
    configs = [member for member in members if isinstance(member, type) and issubclass(member, InputConfig)]
    union: Any = Union[members]  # noqa: UP007 - the members are values here
    if len(configs) > 1 and set(members) <= {*configs, types.NoneType}:
        return Annotated[union, Field(discriminator=_VARIANT)]
    return union


class RecipeConfig(BaseModel):
    """How a recipe runs: the worker, and what a platform around it needs to know."""

    harmony_url: str
    """Address of the worker: ws://host:port, wss://..., or the path of its Unix socket."""
    control_plane_url: str | None = None
    """Address of the control plane."""
    control_plane_internal_url: str | None = None
    """Accepted and not used."""
    control_plane_api_token: str | None = None
    """Key for the control plane; `api_key` where it is None."""
    num_gpus: int = 0
    """GPUs of the job, told to a gateway in front of workers."""
    name: str | None = None
    """The job's name, for people."""
    recipe_name: str | None = None
    """The recipe's name, for people."""
    job_id: str | None = None
    """Id of the job; a fresh UUID by default."""
    project: str | None = None
    """Project that the job belongs to; with a key it asks for the control plane."""
    api_key: str | None = None
    """Key for a gateway in front of workers."""
    compute_pool: str | None = None
    """Pool in which the job runs, told to a gateway in front of workers."""
    working_dir: str | None = None
    """Folder for what the job downloads and makes; `adaptive` in the folder for temporary files by default."""
    user_input_file: str | None = None
    """File of JSON with the recipe's input."""
    resume_checkpoint_artifact_id: str | None = None
    """Checkpoint at the control plane from which to resume."""


class RecipeConfigCli(RecipeConfig, BaseSettings):
    """`RecipeConfig` from the command line (`--harmony-url`) and the environment (`ADAPTIVE_HARMONY_URL`)."""

    model_config: ClassVar[SettingsConfigDict] = SettingsConfigDict(
        env_prefix="ADAPTIVE_", cli_parse_args=True, cli_kebab_case=True, extra="ignore"
    )


class RunnerArgs(RecipeConfigCli):
    """What `python -m adaptive_harmony.runtime.runner` takes from the command line and the environment."""

    recipe_key: str | None = None
    """Key of the recipe at the control plane; without one, the path of a file or folder."""
    entrypoint: str = "main.py"
    """The file with `@recipe_main`, in the recipe's folder."""
