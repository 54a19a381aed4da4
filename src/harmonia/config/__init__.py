"""Every knob of the system, frozen and documented field by field. Nothing here loads torch."""

from harmonia.config.engine import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.config.server import ServerConfig
from harmonia.config.worker import AdapterSource, WorkerConfig

__all__ = ["AdapterSource", "CacheConfig", "EngineConfig", "SchedulerConfig", "ServerConfig", "WorkerConfig"]
