"""The control plane's settings out of the environment, with words for what is wrong there."""

from __future__ import annotations

import json
from collections.abc import Iterator, Mapping

from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo
from pydantic_settings import SettingsError

from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError

PREFIX = "ADAPTIVE_"
_ELSEWHERE = ("API_KEY", "BASE_URL", "URL", "LOG_LEVEL", "LOG_FORMAT", "LOGGING_LEVEL", "MODE")
"""Variables of clients, of workers and of the log."""


def read_control_config(environment: Mapping[str, str], **overrides: object) -> ControlConfig:
    """The settings; `InvalidRequestError` names a variable that is unknown or has a bad value, never the value itself.

    environment: what the process was started with. overrides: settings that the command line gave, as `server={"port":
    9100}`; what they leave out is taken from the environment.
    """
    for name in environment:
        if name.upper().startswith(PREFIX) and not _is_known(name.upper()):
            raise InvalidRequestError(
                f"{name} is no setting of this server; look at `harmonia up --help` for their names", field=name
            )
    try:
        return ControlConfig(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors(include_input=False)[0]
        name = PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequestError(f"{name}: {first['msg']}", field=name) from error
    except SettingsError as error:
        name = next(_not_json(environment), PREFIX)
        raise InvalidRequestError(f'{name} is not JSON, such as ["first", "second"]', field=name) from error


def variables(model: type[BaseModel] = ControlConfig, prefix: str = PREFIX) -> Iterator[str]:
    """The names of all variables."""
    for name, field in model.model_fields.items():
        section = _section(field)
        if section is None:
            yield f"{prefix}{name}".upper()
        else:
            yield from variables(section, f"{prefix}{name}__")


def _is_known(name: str) -> bool:
    is_elsewhere = name.removeprefix(PREFIX) in _ELSEWHERE or name.startswith("ADAPTIVE_RECIPE_JOB__")
    return is_elsewhere or _field(name) is not None


def _field(name: str) -> FieldInfo | None:
    """The setting of a variable; None if there is none of this name."""
    fields, field = ControlConfig.model_fields, None
    for part in name.removeprefix(PREFIX).lower().split("__"):
        field = fields.get(part)
        section = None if field is None else _section(field)
        if section is None:
            return field  # what follows is part of a value
        fields = section.model_fields
    return field


def _section(field: FieldInfo) -> type[BaseModel] | None:
    kind = field.annotation
    return kind if isinstance(kind, type) and issubclass(kind, BaseModel) else None


def _not_json(environment: Mapping[str, str]) -> Iterator[str]:
    """Variables of lists and whole sections that hold something else."""
    for name, value in environment.items():
        field = _field(name.upper()) if name.upper().startswith(PREFIX) else None
        if field is not None and (_section(field) is not None or str(field.annotation).startswith("tuple")):
            try:
                json.loads(value)
            except ValueError:
                yield name
