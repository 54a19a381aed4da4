"""Learning rates over a run."""

from harmonia.trainers import CombinedSchedule, CosineScheduler, CosineSchedulerWithoutWarmup

__all__ = ["CombinedSchedule", "CosineScheduler", "CosineSchedulerWithoutWarmup"]
