"""What a job may have: checked before it is accepted, and named when it ends for it."""

from __future__ import annotations

from typing import Protocol

from harmonia.errors import InvalidRequestError
from harmonia.server.services.models.devices import Pool

MAX_DEVICES = 1
"""A worker computes on one device, and a job has one worker."""
_MIN_RAM_GB = 0.25
_OUT_OF_MEMORY = ("MemoryError", "Cannot allocate memory", "bad_alloc", "Unable to allocate")


class Limits(Protocol):
    """What was asked for; None: no limit."""

    @property
    def num_gpus(self) -> int: ...
    @property
    def max_ram_gb(self) -> float | None: ...
    @property
    def max_duration_s(self) -> int | None: ...


def check_limits(wanted: Limits, pool: Pool) -> None:
    """Raise InvalidRequestError for what cannot be had in a pool."""
    if wanted.num_gpus < 0:
        raise InvalidRequestError(f"numGpus must be at least 0, got {wanted.num_gpus}", field="numGpus")
    count = len(pool.devices)
    if wanted.num_gpus > count:
        raise InvalidRequestError(
            f"numGpus is {wanted.num_gpus}, and compute pool {pool.key!r} has {count} "
            f"device{'s' if count > 1 else ''} ({pool.device_types}); ask for so many at most, or name another pool",
            field="numGpus",
        )
    if wanted.num_gpus > MAX_DEVICES:
        raise InvalidRequestError(
            f"a job's models run on one device, so numGpus is 0 or 1, got {wanted.num_gpus}; run several jobs to use "
            "several devices",
            field="numGpus",
        )
    if wanted.max_ram_gb is not None and not wanted.max_ram_gb >= _MIN_RAM_GB:
        raise InvalidRequestError(f"maxRamGb must be at least {_MIN_RAM_GB}, got {wanted.max_ram_gb}", field="maxRamGb")
    if wanted.max_duration_s is not None and wanted.max_duration_s < 1:
        raise InvalidRequestError(
            f"maxDurationSecs must be at least 1, got {wanted.max_duration_s}", field="maxDurationSecs"
        )


def explained(limits: Limits, error: str) -> str:
    """Why a job failed, with the limit in front that was behind it."""
    if limits.max_ram_gb is None or not any(words in error for words in _OUT_OF_MEMORY):
        return error
    return f"{over_memory(limits)}:\n{error}"


def over_memory(limits: Limits) -> str:
    """The reason of a job that needs more memory than it may have."""
    return f"the job reached its limit of {limits.max_ram_gb:g} GiB of memory (maxRamGb)"


def over_time(limits: Limits) -> str:
    """The reason of a job that takes longer than it may."""
    return f"the job ran longer than {limits.max_duration_s} s (maxDurationSecs) and was ended"
