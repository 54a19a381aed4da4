"""Where metrics go: the terminal, TensorBoard, MLflow, Weights & Biases, the job; `get_prod_logger(ctx)` chooses."""

from harmonia.trainers.metric_loggers.base import Logger, Metric
from harmonia.trainers.metric_loggers.composite import CompositeLogger
from harmonia.trainers.metric_loggers.job import JobLogger
from harmonia.trainers.metric_loggers.mlflow import MLFlowLogger
from harmonia.trainers.metric_loggers.production import get_prod_logger
from harmonia.trainers.metric_loggers.stdout import StdoutLogger
from harmonia.trainers.metric_loggers.tensorboard import TBMetricsLogger
from harmonia.trainers.metric_loggers.wandb import WandbLogger

__all__ = [
    "CompositeLogger",
    "JobLogger",
    "Logger",
    "MLFlowLogger",
    "Metric",
    "StdoutLogger",
    "TBMetricsLogger",
    "WandbLogger",
    "get_prod_logger",
]
