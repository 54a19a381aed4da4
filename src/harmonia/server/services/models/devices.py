"""The devices of this machine, found without loading what computes on them."""

from __future__ import annotations

import os
from collections import Counter
from dataclasses import dataclass
from pathlib import Path

_GPUS = Path("/proc/driver/nvidia/gpus")


@dataclass(frozen=True, slots=True)
class Devices:
    """GPUs, or the CPU as one device."""

    count: int
    types: str
    """Such as `8 x NVIDIA H100 80GB HBM3`."""


def find_devices(folder: Path = _GPUS, visible: str | None = None) -> Devices:
    """What this process may use. visible: `CUDA_VISIBLE_DEVICES`; None reads the environment."""
    names = [_name(entry) for entry in sorted(folder.iterdir())] if folder.is_dir() else []
    chosen = os.environ.get("CUDA_VISIBLE_DEVICES") if visible is None else visible
    if chosen is not None:
        names = names[: len([part for part in chosen.split(",") if part.strip() not in ("", "-1")])]
    if not names:
        return Devices(1, "CPU")
    kinds = Counter(names)
    return Devices(len(names), ", ".join(f"{count} x {name}" for name, count in kinds.items()))


def _name(gpu: Path) -> str:
    lines = (gpu / "information").read_text(errors="replace").splitlines()
    return next((line.partition(":")[2].strip() for line in lines if line.startswith("Model:")), "GPU")
