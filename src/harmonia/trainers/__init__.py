"""Trainers: loops that turn data sets into trained models, written against the client and graders only.

await SFT(threads, model, callbacks=[ValidationLossCallback(held_out, model)]).run()
"""

from harmonia.trainers.batching import (
    async_map,
    async_map_batch,
    async_map_fallible,
    batch_process_fallible,
    get_minibatches,
)
from harmonia.trainers.callbacks import (
    GenerateSamplesCallback,
    GraderEvalCallback,
    RecipeCallback,
    ValidationLossCallback,
    invoke_callbacks,
)
from harmonia.trainers.checkpointing import CheckpointManager
from harmonia.trainers.dataset import DataSet
from harmonia.trainers.distillation import Distillation
from harmonia.trainers.dpo import DPO
from harmonia.trainers.metric_loggers import Logger, StdoutLogger, get_prod_logger
from harmonia.trainers.reward import RewardModelling
from harmonia.trainers.schedules import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup, Scheduler
from harmonia.trainers.sft import SFT
from harmonia.trainers.tangents import grpo_loss, train_dpo_tangents, train_grpo_tangents, train_sft_tangents

__all__ = [
    "DPO",
    "SFT",
    "CheckpointManager",
    "CombinedSchedule",
    "CosineScheduler",
    "CosineSchedulerWithoutWarmup",
    "DataSet",
    "Distillation",
    "GenerateSamplesCallback",
    "GraderEvalCallback",
    "Logger",
    "RecipeCallback",
    "RewardModelling",
    "Scheduler",
    "StdoutLogger",
    "ValidationLossCallback",
    "async_map",
    "async_map_batch",
    "async_map_fallible",
    "batch_process_fallible",
    "get_minibatches",
    "get_prod_logger",
    "grpo_loss",
    "invoke_callbacks",
    "train_dpo_tangents",
    "train_grpo_tangents",
    "train_sft_tangents",
]
