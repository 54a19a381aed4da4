"""Model acceleration: teach a small model to propose what a large one will say."""

from __future__ import annotations

import random
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from typing import NamedTuple

from harmonia.client import InferenceModel, ModelBuilder, StringThread, Timings, TokenizedThread, TrainingModel
from harmonia.client.recipe import RecipeContext, recipe_main
from harmonia.client.recipe.notifiers import StageNotifier
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.protocol.instances import SCHEME
from harmonia.recipes.naming import RenamingLogger, require_other_key
from harmonia.trainers import Distillation, Logger, async_map_fallible, get_prod_logger

from .config import Layers, SpecdecAlignmentConfig

BEFORE, ANSWERS, TRAINING, AFTER = "Measuring before", "Answering", "Training", "Measuring after"
METRICS = {
    "loss": "train/loss",
    "grad_norm": "train/gradient_norm",
    "agreement": "train/acceptance_rate",
    "overlap": "train/overlap",
}
SUMMARY = "held-out prompts"
MOST_HELD_OUT = 64
"""Prompts that are measured with, at most: they are answered one at a time, as with many at once little is proposed."""

log = get_logger(__name__)


class Pair(NamedTuple):
    """A target, and what shall draft for it, found but not loaded."""

    target_path: str
    target: ModelBuilder
    draft: ModelBuilder
    untrained: str | None
    """Where the draft is before it is trained; None: it is yet to be cut."""


class Measured(NamedTuple):
    """What decoding showed."""

    num_proposed: int
    num_accepted: int
    num_tokens: int
    """Of the answers, their first ones left out."""
    seconds: float
    """That these took, summed over the answers."""

    @property
    def acceptance_rate(self) -> float:
        """Share of the proposed tokens that were right; 0 where nothing was proposed."""
        return self.num_accepted / max(1, self.num_proposed)

    @property
    def tokens_per_s(self) -> float:
        """Of one answer at a time."""
        return self.num_tokens / self.seconds if self.seconds else 0.0


@recipe_main
async def specdec_alignment(config: SpecdecAlignmentConfig, ctx: RecipeContext) -> None:
    """Teach a draft to say what its target says, and save it as the accelerated target."""
    ctx.job.register_stages([BEFORE, ANSWERS, TRAINING, AFTER])
    pair = await find_pair(config, ctx)
    prompts, held_out = await load_prompts(config, ctx)
    logger = RenamingLogger(get_prod_logger(ctx), METRICS)
    builder = pair.draft.with_adapter() if config.adapter else pair.draft
    draft = await builder.spawn_train(_name("draft", ctx), config.max_sequence_length)

    before = None
    if ctx.checkpoint_restore_data is None:  # of a job that goes on, the draft is not what it was
        path = pair.untrained or f"{SCHEME}{await draft.save(_untrained(ctx), merged=True)}"
        async with spawned(pair.target.with_draft(path, config.num_draft_steps), _name("pair", ctx)) as drafted:
            before = await measure(drafted, held_out, ctx.job.stage_notifier(BEFORE))
        logger(_record(before))
    target = await pair.target.spawn_inference(_name("target", ctx))
    stage = ctx.job.stage_notifier(ANSWERS)
    answers = await answer(target.temperature(config.temperature), prompts, config.max_sequence_length, stage)
    await train(config, ctx, draft, target, answers, logger)
    key = await draft.save(
        config.output_key,
        ctx=ctx,
        merged=True,
        draft_target=pair.target_path,
        num_draft_steps=config.num_draft_steps,
    )
    # What trained makes room for what drafts.
    await draft.dealloc()
    await target.dealloc()
    builder = pair.target.with_draft(f"{SCHEME}{key}", config.num_draft_steps)
    async with spawned(builder, _name("pair", ctx)) as drafted, spawned(pair.target, _name("target", ctx)) as plain:
        after = await measure(drafted, held_out, ctx.job.stage_notifier(AFTER))
        without = await measure(plain, held_out)
    logger({**_record(after), "val/plain_tokens_per_s": without.tokens_per_s, SUMMARY: _table(without, before, after)})


async def find_pair(config: SpecdecAlignmentConfig, ctx: RecipeContext) -> Pair:
    """Both models, described but not loaded. InvalidRequestError for what cannot be a target, or has not the layers."""
    target = await config.target_model.to_builder(ctx, tokens_to_generate=config.max_answer_tokens)
    path = target.to_python_dict()["path"]
    about = await ctx.client.describe(path)
    if about.draft_target is not None:
        raise InvalidRequestError(
            f"target_model {config.target_model.model_key!r} is a draft of {about.draft_target}; name that as the "
            "target, and this as draft_model to train it further",
            field="target_model",
        )
    await require_other_key(ctx, config.output_key, about.path, about.base)
    if isinstance(config.draft_model, Layers):
        count, whole = config.draft_model.count, about.base or path
        if count >= about.num_layers:
            raise InvalidRequestError(
                f"draft_model layers:{count} is no smaller than the target, which has {about.num_layers} layers; take "
                "fewer, such as a tenth of them",
                field="draft_model",
            )
        # The first ones: of SmolLM2's thirty, the first four agree with it on 5 % of the tokens at once and on 30 %
        # after 15,000 of them; 0, 1, 28 and 29 on none, and on 21 %.
        # It answers prompts itself at most, so its cache should leave room for the target's.
        kv_cache_len = min(config.max_sequence_length, about.max_seq_len)
        draft = ctx.client.model(whole, kv_cache_len=kv_cache_len).keep_layers(range(count))
        return Pair(path, target, draft, None)
    draft = await config.draft_model.to_builder(ctx)
    return Pair(path, target, draft, draft.to_python_dict()["path"])


async def load_prompts(
    config: SpecdecAlignmentConfig, ctx: RecipeContext
) -> tuple[list[StringThread], list[StringThread]]:
    """What to train on, and what to measure with: a random share, the same when the job is resumed."""
    prompts = await config.dataset.load(ctx)
    count = min(MOST_HELD_OUT, max(1, round(config.validation_share * len(prompts))))
    if count >= len(prompts):
        raise InvalidRequestError(
            f"the data set has {len(prompts)} prompts, of which validation_share {config.validation_share} leaves none "
            "to train on; give more prompts",
            field="dataset",
        )
    shuffled = random.Random(0).sample(prompts, len(prompts))
    return shuffled[count:], shuffled[:count]


async def answer(
    target: InferenceModel, prompts: list[StringThread], max_tokens: int, stage: StageNotifier
) -> list[TokenizedThread]:
    """What the target answers, all prompts at once; those that leave no room for an answer are counted, and so are
    those that with it have more than `max_tokens`, which the draft could not learn from."""
    said = await async_map_fallible(target.generate_tokens, prompts, stage_notifier=stage)
    said = [answer for answer in said if answer.len_last_turn()]
    if not said:
        raise InvalidRequestError(
            f"the target answered none of {len(prompts)} prompts, and the log says why; prompts that fill its context "
            "leave no room for an answer",
            field="dataset",
        )
    answers = [answer for answer in said if len(answer.token_ids) <= max_tokens]
    if not answers:
        raise InvalidRequestError(
            f"all {len(said)} prompts are longer with their answer than max_sequence_length {max_tokens}; raise it, or "
            "lower max_answer_tokens",
            field="max_sequence_length",
        )
    if dropped := len(prompts) - len(answers):
        log.warning(
            "%d of %d prompts were not answered, or are longer with their answer than max_sequence_length %d, and are "
            "left out",
            dropped,
            len(prompts),
            max_tokens,
        )
        stage.report_metrics({"num_dropped_samples": dropped})
    return answers


async def train(
    config: SpecdecAlignmentConfig,
    ctx: RecipeContext,
    draft: TrainingModel,
    target: InferenceModel,
    answers: list[TokenizedThread],
    logger: Logger,
) -> None:
    """Bring the draft's distributions to the target's."""
    epochs = config.epochs
    if config.steps is not None:
        epochs = config.steps * config.samples_per_batch / len(answers)
    await Distillation(
        dataset=answers,
        model=draft.max_gen_len(config.max_answer_tokens),
        teacher=target,
        logger=logger,
        stage_notifier=ctx.job.stage_notifier(TRAINING),
        divergence=config.divergence,
        on_policy_share=config.on_policy_share,
        lr=config.peak_learning_rate,
        samples_per_batch=config.samples_per_batch,
        max_grad_norm=config.max_grad_norm,
        epochs=epochs,
        weight_decay=config.weight_decay,
        checkpoint_restore_data=ctx.checkpoint_restore_data,
    ).run()


@asynccontextmanager
async def spawned(builder: ModelBuilder, name: str) -> AsyncIterator[InferenceModel]:
    """A model that answers greedily, freed at the end of the context."""
    model = await builder.spawn_inference(name)
    try:
        yield model.temperature(0)
    finally:
        await model.dealloc()


async def measure(model: InferenceModel, prompts: list[StringThread], stage: StageNotifier | None = None) -> Measured:
    """Have it answer prompts: how fast, and how often a draft knows the next token.

    Each one twice where there is a draft: the worker takes as many proposals as pay, so hardly any of a poor draft.
    """
    has_draft = model.get_builder_args().get("with_draft") is not None

    async def timed(prompt: StringThread) -> tuple[Timings, Timings | None]:
        proposed = (await model.always_draft().generate(prompt, return_timings=True))[1] if has_draft else None
        return (await model.generate(prompt, return_timings=True))[1], proposed

    timings = await async_map_fallible(timed, prompts, 1, stage)
    if not timings:
        raise InvalidRequestError(
            f"none of the {len(prompts)} prompts that are held out could be answered, and the log says why; give "
            "shorter prompts, or raise validation_share",
            field="dataset",
        )
    # First tokens wait for the prompt, of which more or less may be cached.
    later = [(max(0, each.num_completion_tokens - 1), each.tbt_sec) for each, _ in timings]
    proposed = [each for _, each in timings if each is not None]
    return Measured(
        sum(each.num_drafted_tokens for each in proposed),
        sum(each.num_accepted_tokens for each in proposed),
        sum(count for count, _ in later),
        sum(count * seconds for count, seconds in later),
    )


def _record(measured: Measured) -> dict[str, float]:
    return {
        "val/acceptance_rate": measured.acceptance_rate,
        "val/num_proposed_tokens": measured.num_proposed,
        "val/tokens_per_s": measured.tokens_per_s,
    }


def _table(without: Measured, before: Measured | None, after: Measured) -> Table:
    table = Table(["draft", "acceptance", "proposed", "accepted", "tokens/s"])
    for name, measured in (("none", without), ("before training", before), ("after training", after)):
        if measured is not None:
            rate = f"{measured.acceptance_rate:.3f}" if measured.num_proposed else ""
            counts = (measured.num_proposed, measured.num_accepted)
            table.add_row([name, rate, *counts, f"{measured.tokens_per_s:.1f}"])
    return table


def _name(role: str, ctx: RecipeContext) -> str:
    """A name on the worker: its own for each job, and the same when the job is resumed."""
    return f"specdec-{role}-{ctx.job.job_id[-6:]}"


def _untrained(ctx: RecipeContext) -> str:
    """The key of the draft as it was cut; goes with the job's checkpoints."""
    return f"checkpoints/{ctx.job.job_id}/untrained"
