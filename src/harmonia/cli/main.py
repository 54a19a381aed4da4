"""Every command of `harmonia`."""

from __future__ import annotations

from harmonia.cli import (
    jobs,
    plan,
    run,
    serve,
    server_admin,
    server_artifacts,
    server_entities,
    server_jobs,
    server_models,
    server_people,
    server_prompts,
    server_settings,
    server_usage,
    up,
    worker,
)
from harmonia.cli.app import app

__all__ = [
    "app",
    "jobs",
    "plan",
    "run",
    "serve",
    "server_admin",
    "server_artifacts",
    "server_entities",
    "server_jobs",
    "server_models",
    "server_people",
    "server_prompts",
    "server_settings",
    "server_usage",
    "up",
    "worker",
]
