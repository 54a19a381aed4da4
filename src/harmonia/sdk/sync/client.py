# Made by scripts/generate of src/harmonia/sdk/aio/client.py: change that file, then run the script.
"""The client, with all resources."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Unpack

from harmonia.sdk.call import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, OptionChanges, Options
from harmonia.sdk.settings import Settings, load_settings
from harmonia.sdk.sync.ab_tests import AbTests
from harmonia.sdk.sync.chat import Chat, Completions, Embeddings
from harmonia.sdk.sync.compute_pools import ComputePools
from harmonia.sdk.sync.datasets import Datasets
from harmonia.sdk.sync.feedback import Feedback, Interactions, Metrics
from harmonia.sdk.sync.graders import Graders
from harmonia.sdk.sync.integrations import Integrations
from harmonia.sdk.sync.jobs import Artifacts, Jobs
from harmonia.sdk.sync.models import Models
from harmonia.sdk.sync.people import Permissions, Roles, Teams, Users
from harmonia.sdk.sync.projects import Projects
from harmonia.sdk.sync.recipes import Recipes
from harmonia.sdk.sync.system_prompts import SystemPrompts
from harmonia.sdk.sync.transport import Transport
from harmonia.sdk.sync.usage import Usage


class Adaptive:
    """A connection to a Harmonia server.

    Whatever is not given comes from the environment (ADAPTIVE_BASE_URL or ADAPTIVE_URL, ADAPTIVE_API_KEY,
    DEFAULT_PROJECT), then from the settings file that `harmonia config` writes. What the server refuses is raised as an
    exception of `harmonia.errors`.
    """

    def __init__(
        self,
        base_url: str | None = None,
        api_key: str | None = None,
        default_project: str | None = None,
        timeout_s: float | None = DEFAULT_TIMEOUT_S,
        retries: int = DEFAULT_RETRIES,
    ) -> None:
        """timeout_s: longest wait for the next bytes of an answer, None for ever; retries: of what may be repeated."""
        settings = load_settings(Settings(base_url, api_key, default_project))
        self._adopt(Transport(settings, Options(timeout_s, retries)))

    def _adopt(self, transport: Transport) -> None:
        self._transport = transport
        self.ab_tests = AbTests(transport)
        self.artifacts = Artifacts(transport)
        self.chat = Chat(transport)
        self.completions = Completions(transport)
        self.compute_pools = ComputePools(transport)
        self.datasets = Datasets(transport)
        self.embeddings = Embeddings(transport)
        self.feedback = Feedback(transport)
        self.graders = Graders(transport)
        self.integrations = Integrations(transport)
        self.interactions = Interactions(transport)
        self.jobs = Jobs(transport)
        self.metrics = Metrics(transport)
        self.models = Models(transport)
        self.permissions = Permissions(transport)
        self.projects = Projects(transport)
        self.recipes = Recipes(transport)
        self.roles = Roles(transport)
        self.system_prompts = SystemPrompts(transport)
        self.teams = Teams(transport)
        self.usage = Usage(transport)
        self.users = Users(transport)

    @property
    def base_url(self) -> str:
        """Where the server is."""
        return self._transport.address

    @property
    def default_project(self) -> str | None:
        """The project of calls that name none."""
        return self._transport.settings.default_project

    def set_default_project(self, project: str) -> None:
        """Name the project of calls that name none."""
        self._transport.settings = replace(self._transport.settings, default_project=project)

    def with_options(self, **changes: Unpack[OptionChanges]) -> Adaptive:
        """The same connection used otherwise: `adaptive.with_options(timeout_s=600).chat.create(...)`."""
        other = object.__new__(type(self))
        other._adopt(self._transport.with_options(replace(self._transport.options, **changes)))
        return other

    def close(self) -> None:
        """Give the connections back; those of `with_options` are the same ones."""
        self._transport.close()

    def __enter__(self) -> Adaptive:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
