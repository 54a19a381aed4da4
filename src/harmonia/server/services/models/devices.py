"""The devices of this machine, found without loading what computes on them, and the pools that they form."""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from harmonia.config.control import Compute, PoolSettings
from harmonia.config.worker import CPU, cores_of
from harmonia.errors import InvalidRequestError

INFERENCE, JOB = "INFERENCE", "JOB"
DEFAULT_POOL = "default"
_GPUS = Path("/proc/driver/nvidia/gpus")
_SETTING = "ADAPTIVE_COMPUTE__POOLS"


@dataclass(frozen=True, slots=True)
class Device:
    """A GPU, the CPU, or some of its cores."""

    place: str
    """What a worker is told: `WorkerConfig.place`."""
    kind: str
    """Such as `NVIDIA H100 80GB HBM3`."""

    @property
    def is_cpu(self) -> bool:
        """Whether the CPU computes."""
        return self.place.partition(":")[0] == CPU


@dataclass(frozen=True, slots=True)
class Pool:
    """Devices that belong together. A device is in one pool only."""

    key: str
    name: str
    capabilities: tuple[str, ...]
    devices: tuple[Device, ...]

    @property
    def is_shared(self) -> bool:
        """A pool of a single device serves on it and runs a job there at the same time."""
        return len(self.devices) == 1

    @property
    def device_types(self) -> str:
        """Such as `8 x NVIDIA H100 80GB HBM3`."""
        if self.devices[0].is_cpu:
            return self.devices[0].kind if self.is_shared else f"{len(self.devices)} x {CPU.upper()}"
        kinds = Counter(device.kind for device in self.devices)
        return ", ".join(f"{count} x {kind}" for kind, count in kinds.items())


def find_gpus(folder: Path = _GPUS, visible: str | None = None) -> tuple[Device, ...]:
    """The GPUs that this process may use. visible: `CUDA_VISIBLE_DEVICES`; None reads the environment."""
    kinds = [_name(entry) for entry in sorted(folder.iterdir())] if folder.is_dir() else []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if chosen is None:
        return tuple(Device(str(number), kind) for number, kind in enumerate(kinds))
    places = [part.strip() for part in chosen.split(",") if part.strip() not in ("", "-1")]
    return tuple(
        Device(place, kinds[int(place)] if place.isdigit() and int(place) < len(kinds) else kind)
        for place, kind in zip(places, kinds, strict=False)
    )


def find_pools(settings: Compute, gpus: Sequence[Device] | None = None) -> tuple[Pool, ...]:
    """The pools of this machine, the default first. gpus: None looks for them.

    Errors: InvalidRequestError for a device that is not there, belongs to two pools, or is of another kind than the
    rest of its pool.
    """
    gpus = find_gpus() if gpus is None else gpus
    if not settings.pools:
        devices = tuple(gpus) or (Device(CPU, "CPU"),)
        return (Pool(DEFAULT_POOL, "Default", (INFERENCE, JOB), devices),)
    pools = tuple(_pool(pool, gpus) for pool in settings.pools)
    _require_apart(pools)
    return pools


def _pool(settings: PoolSettings, gpus: Sequence[Device]) -> Pool:
    devices = tuple(_device(settings.key, name, gpus) for name in settings.devices)
    if len({device.is_cpu for device in devices}) > 1:
        raise _wrong(f"pool {settings.key!r} has GPUs and the CPU; make a pool for each")
    capabilities = tuple(dict.fromkeys(settings.capabilities))
    return Pool(settings.key, settings.name or settings.key, capabilities, devices)


def _device(pool: str, name: str, gpus: Sequence[Device]) -> Device:
    if name.isdigit():
        if int(name) < len(gpus):
            return gpus[int(name)]
        raise _wrong(f"pool {pool!r} has GPU {name}, and this machine has {len(gpus)}, counted from 0")
    try:
        cores = cores_of(name)
    except ValueError:
        cores = frozenset()
    if name == CPU or (cores and cores <= _own_cores()):
        return Device(name, "CPU" if name == CPU else f"CPU cores {name.removeprefix(f'{CPU}:')}")
    own = ", ".join(map(str, sorted(_own_cores())))
    raise _wrong(f"pool {pool!r} has {name!r}; give the number of a GPU, 'cpu', or cores out of {own}, as 'cpu:0-1'")


def _require_apart(pools: Sequence[Pool]) -> None:
    owners: dict[str, str] = {}
    for pool in pools:
        for device in pool.devices:
            for part in _parts(device):
                owner = owners.setdefault(part, pool.key)
                if owner != pool.key or [other for other in pool.devices if part in _parts(other)] != [device]:
                    raise _wrong(f"{device.place!r} of pool {pool.key!r} is used by pool {owner!r} too; use it once")


def _parts(device: Device) -> set[str]:
    """What cannot be in two devices: a GPU, or cores."""
    if not device.is_cpu:
        return {device.place}
    cores = cores_of(device.place)
    return {f"{CPU}:{core}" for core in (_own_cores() if cores is None else cores)}


def _own_cores() -> frozenset[int]:
    if hasattr(os, "sched_getaffinity"):
        return frozenset(os.sched_getaffinity(0))
    return frozenset(range(os.cpu_count() or 1))


def _wrong(message: str) -> InvalidRequestError:
    return InvalidRequestError(f"{_SETTING}: {message}", field=_SETTING)


def _name(gpu: Path) -> str:
    lines = (gpu / "information").read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "GPU")
