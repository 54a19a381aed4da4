"""Where the numbers of a run go."""

from harmonia.trainers import Logger, StdoutLogger, get_prod_logger
from harmonia.trainers.metric_loggers import CompositeLogger, MLFlowLogger, TBMetricsLogger, WandbLogger

__all__ = [
    "CompositeLogger",
    "Logger",
    "MLFlowLogger",
    "StdoutLogger",
    "TBMetricsLogger",
    "WandbLogger",
    "get_prod_logger",
]
