"""The control plane's settings out of the environment, with words for what is wrong there."""

from __future__ import annotations

from collections.abc import Mapping

from pydantic import BaseModel, ValidationError

from harmonia.config.control import ControlConfig
from harmonia.errors import InvalidRequestError

PREFIX = "ADAPTIVE_"
_ELSEWHERE = ("API_KEY", "BASE_URL", "URL", "LOG_LEVEL", "LOGGING_LEVEL", "MODE")
"""Variables of clients and of workers."""


def read_control_config(environment: Mapping[str, str], **overrides: object) -> ControlConfig:
    """The settings; `InvalidRequestError` names a variable that is unknown or has a bad value.

    environment: what the process was started with. overrides: top-level settings that the command line gave.
    """
    for name in environment:
        if name.upper().startswith(PREFIX) and not _is_known(name.upper()):
            raise InvalidRequestError(
                f"{name} is no setting of this server; look at `harmonia up --help` for their names", field=name
            )
    try:
        return ControlConfig(**overrides)  # type: ignore[arg-type]
    except ValidationError as error:
        first = error.errors()[0]
        name = PREFIX + "__".join(str(part) for part in first["loc"]).upper()
        raise InvalidRequestError(f"{name}: {first['msg']}", field=name) from error


def _is_known(name: str) -> bool:
    if name.removeprefix(PREFIX) in _ELSEWHERE or name.startswith("ADAPTIVE_RECIPE_JOB__"):
        return True
    fields = ControlConfig.model_fields
    for part in name.removeprefix(PREFIX).lower().split("__"):
        field = fields.get(part)
        if field is None:
            return False
        section = field.annotation
        if not (isinstance(section, type) and issubclass(section, BaseModel)):
            return True  # what follows is part of a value
        fields = section.model_fields
    return True
