"""A grader as a field of a recipe's config."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from pydantic import BaseModel, ConfigDict, GetJsonSchemaHandler, model_serializer, model_validator
from pydantic.json_schema import JsonSchemaValue
from pydantic_core import CoreSchema

from harmonia.errors import InvalidRequestError
from harmonia.graders.base import BaseGrader
from harmonia.graders.loading import check_grader
from harmonia.graders.source import GradeFunction

if TYPE_CHECKING:
    from harmonia.client.data import AdaptiveGrader
    from harmonia.client.recipe.context import RecipeContext


class Grader(BaseModel):
    """A grader of the platform by its key. In a config it is written as that key alone.

    Equal by key and hashable, so a config may hold a set of them.
    """

    model_config = ConfigDict(frozen=True)

    grader_key: str

    @model_validator(mode="before")
    @classmethod
    def validate_from_json(cls, data: Any) -> Any:
        """Takes the bare key too."""
        return {"grader_key": data} if isinstance(data, str) else data

    @model_serializer
    def serialize_model(self) -> str:
        """The bare key."""
        return self.grader_key

    @classmethod
    def __get_pydantic_json_schema__(cls, schema: CoreSchema, handler: GetJsonSchemaHandler) -> JsonSchemaValue:
        """Forms and flags ask for a string."""
        return {"type": "string", "title": "Grader", "description": "A grader of the platform, by its key."}

    async def load(
        self,
        ctx: RecipeContext,
        tp: int | None = None,
        kv_cache_len: int | None = None,
        max_tokens: int | None = None,
        custom: Mapping[str, GradeFunction] | None = None,
    ) -> BaseGrader[Any]:
        """The grader itself, whatever its type.

        A function runs in the recipe. The model of a judge is spawned on the job's worker, where it shares weights with
        others of the same base; tp, kv_cache_len (tokens) and max_tokens (of a verdict) are for it, None leaves them to
        the model. Servers outside, and judges that are external models, are asked through the control plane with the
        job's key, whose user needs `project:infer`. Graders of type Custom live in the recipe: custom has their
        functions, `async def grade(thread) -> float`, by key.

        Errors: InvalidRequestError for a grader without a way to grade, RuntimeError for a judge that does not start.
        """
        return await BaseGrader.from_config(await self._config(ctx), ctx, tp, kv_cache_len, max_tokens, custom)

    async def check(self, ctx: RecipeContext) -> None:
        """InvalidRequestError if it cannot be loaded; nothing is loaded."""
        await check_grader(await self._config(ctx), ctx)

    async def _config(self, ctx: RecipeContext) -> AdaptiveGrader:
        if ctx.control_plane is None:
            raise InvalidRequestError(
                f"grader {self.grader_key!r} is kept by a control plane and there is none here; write it in the "
                f"recipe: BaseGrader.from_function({self.grader_key!r}, grade) with `async def grade(thread) -> float`",
                field="grader_key",
            )
        config: AdaptiveGrader = await ctx.control_plane.get_grader_config(self.grader_key)
        return config
