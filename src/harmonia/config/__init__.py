"""Every knob of the system, frozen and documented field by field. Nothing here loads torch.

The server's settings are in `harmonia.config.server`: only it needs pydantic.
"""

from harmonia.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.config.worker import AdapterSource, WorkerConfig

__all__ = ["AdapterSource", "CacheConfig", "EngineConfig", "SchedulerConfig", "WorkerConfig"]
