"""Names in built-in recipes: keys of the models that they save, and of the metrics that they log."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import AfterValidator

from harmonia.client.recipe import RecipeContext
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.protocol.instances import SCHEME
from harmonia.trainers import Logger


def _model_key(key: str) -> str:
    """Refuse before the training what the registry would refuse after it."""
    parts = key.split("/")
    if not all(part and part[0] != "." for part in parts) or not key.isprintable() or "\\" in key:
        raise ValueError("a model's key is names joined by single slashes, such as 'support/v2'")
    return key


ModelKey = Annotated[str, AfterValidator(_model_key)]
"""Under which a trained model is saved."""


async def require_other_key(ctx: RecipeContext, key: str, *needed: str | None) -> None:
    """Refuse before the training a key under which stands what the trained model will need.

    needed: where a draft's target is, or an adapter's base, as `describe` tells it.
    """
    try:
        there = (await ctx.client.describe(f"{SCHEME}{key}")).path
    except InvalidRequestError:  # nothing is there, or nothing that can be needed
        return
    if there in needed:
        raise InvalidRequestError(
            f"output_model_key {key!r} is the key of {there}, which the trained model needs beside itself; choose "
            "another one",
            field="output_model_key",
        )


class RenamingLogger(Logger):
    """Logs through another logger, some metrics by another name: `{"loss": "train/loss"}`."""

    def __init__(self, logger: Logger, names: Mapping[str, str]) -> None:
        self._logger = logger
        self._names = dict(names)

    def __call__(self, metrics: Mapping[str, str | int | float | Table]) -> None:
        """Log one record."""
        self._logger({self._names.get(name, name): value for name, value in metrics.items()})

    def log_config(self, config: dict[str, Any]) -> None:
        """Pass on."""
        self._logger.log_config(config)

    def get_state(self) -> dict[str, Any]:
        """The other logger's."""
        return self._logger.get_state()

    def set_state(self, state: dict[str, Any]) -> None:
        """Pass on."""
        self._logger.set_state(state)

    def close(self) -> None:
        """Pass on."""
        self._logger.close()

    @property
    def training_monitoring_link(self) -> str | None:
        """The other logger's."""
        return self._logger.training_monitoring_link
