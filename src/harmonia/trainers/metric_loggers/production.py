"""The logger that the environment asks for."""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harmonia.client.recipe.current import running_context
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.composite import CompositeLogger
from harmonia.trainers.metric_loggers.job import JobLogger
from harmonia.trainers.metric_loggers.mlflow import MLFlowLogger
from harmonia.trainers.metric_loggers.stdout import StdoutLogger
from harmonia.trainers.metric_loggers.tensorboard import TBMetricsLogger
from harmonia.trainers.metric_loggers.wandb import WandbLogger

if TYPE_CHECKING:
    from harmonia.client.recipe import RecipeContext

_DEFAULT_PROJECT = "harmonia"


def get_prod_logger(ctx: RecipeContext | None = None) -> Logger:
    """Weights & Biases if WANDB_API_KEY is set, else MLflow if MLFLOW_TRACKING_URI is, else TensorBoard if
    TENSORBOARD_LOGGING_DIR is, else standard output, unless the job of `ctx` shows metrics itself; that job hears
    everything in any case.

    MLFLOW_MONITORING_LINK and TENSORBOARD_MONITORING_LINK say where people look at the curves. Project and run are
    named by the context, else by HARMONY_USE_CASE (or HARMONY_USE_CASE_ID), HARMONY_RECIPE_NAME, HARMONY_JOB_NAME and
    HARMONY_JOB_ID. InvalidRequestError if the one that is asked for is not installed.
    """
    logger = _named_by_environment(_project(ctx), _run_name(ctx)) or _shown_here(ctx)
    return logger if ctx is None or isinstance(logger, JobLogger) else CompositeLogger(logger, JobLogger(ctx.job))


def default_logger() -> Logger:
    """`get_prod_logger` of the recipe that runs; outside of one, standard output."""
    ctx = running_context()
    return StdoutLogger() if ctx is None else get_prod_logger(ctx)


def local_logger() -> Logger:
    """The logger of the recipe that runs, or else of this process, without any service that the environment names."""
    return _shown_here(running_context())


def _shown_here(ctx: RecipeContext | None) -> Logger:
    return JobLogger(ctx.job) if ctx is not None and ctx.job.shows_metrics else StdoutLogger()


def _named_by_environment(project: str, run: str) -> Logger | None:
    environment = os.environ
    if environment.get("WANDB_API_KEY"):
        return WandbLogger(project, run)
    if uri := environment.get("MLFLOW_TRACKING_URI"):
        return MLFlowLogger(project, run, uri, environment.get("MLFLOW_MONITORING_LINK"))
    if folder := environment.get("TENSORBOARD_LOGGING_DIR"):
        return TBMetricsLogger(run, folder, environment.get("TENSORBOARD_MONITORING_LINK"))
    return None


def _project(ctx: RecipeContext | None) -> str:
    named = ctx.config.project if ctx else None
    return named or _first("HARMONY_USE_CASE", "HARMONY_USE_CASE_ID") or _DEFAULT_PROJECT


def _run_name(ctx: RecipeContext | None) -> str:
    """Recipe and job, such as `sft-monday`; an id where the job has no name."""
    recipe, job = (ctx.config.recipe_name, ctx.config.name or ctx.job.job_id) if ctx else (None, None)
    parts = (recipe or _first("HARMONY_RECIPE_NAME"), job or _first("HARMONY_JOB_NAME", "HARMONY_JOB_ID"))
    return "-".join(filter(None, parts)) or "local"


def _first(*variables: str) -> str | None:
    """The first environment variable that says something."""
    return next(filter(None, map(os.environ.get, variables)), None)
