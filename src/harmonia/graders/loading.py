"""From the platform's description of a grader to the grader."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from harmonia.client.data import AdaptiveGrader, Custom, Function, Judge, JudgeExample, Prebuilt, Remote
from harmonia.client.parameters.model import Model
from harmonia.errors import InvalidRequestError
from harmonia.graders.base import LOADERS, BaseGrader, Surroundings
from harmonia.graders.judges import BinaryJudgeGrader, BinaryJudgeShot, JudgeTemplates, TemplatedPromptJudgeGrader
from harmonia.graders.judges.prebuilt import CRITERIA
from harmonia.graders.platform import PlatformGrader
from harmonia.threads import StringThread

if TYPE_CHECKING:
    from harmonia.client.recipe.context import RecipeContext


async def _function(record: AdaptiveGrader, _: Surroundings) -> BaseGrader[Any]:
    return BaseGrader.from_source_code(record.key, _source(record))


async def _judge(record: AdaptiveGrader, around: Surroundings) -> BaseGrader[Any]:
    """With its model spawned on the job's worker; an external model is asked where its key is."""
    config = record.config
    assert isinstance(config, Judge | Prebuilt)
    if config.model_uri is None:
        return await _elsewhere(record, around)
    model = await Model(model_key=config.model_key).spawn_inference(
        record.key, around.ctx, around.kv_cache_len, around.max_tokens, around.tp
    )
    if isinstance(config, Prebuilt):
        return BinaryJudgeGrader(record.key, model, CRITERIA[config.prebuilt_config_key].text)
    return TemplatedPromptJudgeGrader(record.key, model, _templates(config))


async def _elsewhere(record: AdaptiveGrader, around: Surroundings) -> BaseGrader[Any]:
    assert around.ctx.control_plane is not None  # it described the grader
    return PlatformGrader(record.key, around.ctx.control_plane)


async def _custom(record: AdaptiveGrader, around: Surroundings) -> BaseGrader[Any]:
    if record.key not in around.custom:
        raise InvalidRequestError(
            f"grader {record.key!r} is of type Custom: it lives in a recipe, and this one brings "
            f"{', '.join(sorted(around.custom)) or 'none'}; hand its function to "
            f"`load(ctx, custom={{{record.key!r}: grade}})`, or choose a grader of another type",
            field="grader_key",
        )
    return BaseGrader.from_function(record.key, around.custom[record.key])


LOADERS.update({Function: _function, Judge: _judge, Prebuilt: _judge, Remote: _elsewhere, Custom: _custom})


async def check_grader(record: AdaptiveGrader, ctx: RecipeContext) -> None:
    """InvalidRequestError for what loading would find out too. Whether the recipe brings a custom grader is known only
    when it does."""
    config = record.config
    if isinstance(config, Function):
        _source(record)
    if isinstance(config, Judge):
        _templates(config)
    if isinstance(config, Judge | Prebuilt) and config.model_uri is not None:
        await Model(model_key=config.model_key).check(ctx)


def _source(record: AdaptiveGrader) -> str:
    assert isinstance(record.config, Function)
    if record.config.source_code is None:
        raise InvalidRequestError(f"the function grader {record.key!r} has no source code", field="source_code")
    return record.config.source_code


def _templates(config: Judge) -> JudgeTemplates:
    return JudgeTemplates(config.system_template, config.user_template, config.criteria, [*map(_shot, config.examples)])


def _shot(example: JudgeExample) -> BinaryJudgeShot:
    turns = [*((turn.role, turn.content) for turn in example.input), ("assistant", example.output)]
    return BinaryJudgeShot(StringThread(turns), example.reasoning, "PASS" if example.pass_ else "FAIL")
