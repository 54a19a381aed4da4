"""The client, with all resources."""

from __future__ import annotations

from dataclasses import replace
from types import TracebackType
from typing import Unpack

from harmonia.sdk.aio.ab_tests import AsyncAbTests
from harmonia.sdk.aio.chat import AsyncChat, AsyncCompletions, AsyncEmbeddings
from harmonia.sdk.aio.compute_pools import AsyncComputePools
from harmonia.sdk.aio.datasets import AsyncDatasets
from harmonia.sdk.aio.feedback import AsyncFeedback, AsyncInteractions, AsyncMetrics
from harmonia.sdk.aio.graders import AsyncGraders
from harmonia.sdk.aio.integrations import AsyncIntegrations
from harmonia.sdk.aio.jobs import AsyncArtifacts, AsyncJobs
from harmonia.sdk.aio.models import AsyncModels
from harmonia.sdk.aio.people import AsyncPermissions, AsyncRoles, AsyncTeams, AsyncUsers
from harmonia.sdk.aio.projects import AsyncProjects
from harmonia.sdk.aio.recipes import AsyncRecipes
from harmonia.sdk.aio.system_prompts import AsyncSystemPrompts
from harmonia.sdk.aio.transport import AsyncTransport
from harmonia.sdk.aio.usage import AsyncUsage
from harmonia.sdk.call import DEFAULT_RETRIES, DEFAULT_TIMEOUT_S, OptionChanges, Options
from harmonia.sdk.settings import Settings, load_settings


class AsyncAdaptive:
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
        self._adopt(AsyncTransport(settings, Options(timeout_s, retries)))

    def _adopt(self, transport: AsyncTransport) -> None:
        self._transport = transport
        self.ab_tests = AsyncAbTests(transport)
        self.artifacts = AsyncArtifacts(transport)
        self.chat = AsyncChat(transport)
        self.completions = AsyncCompletions(transport)
        self.compute_pools = AsyncComputePools(transport)
        self.datasets = AsyncDatasets(transport)
        self.embeddings = AsyncEmbeddings(transport)
        self.feedback = AsyncFeedback(transport)
        self.graders = AsyncGraders(transport)
        self.integrations = AsyncIntegrations(transport)
        self.interactions = AsyncInteractions(transport)
        self.jobs = AsyncJobs(transport)
        self.metrics = AsyncMetrics(transport)
        self.models = AsyncModels(transport)
        self.permissions = AsyncPermissions(transport)
        self.projects = AsyncProjects(transport)
        self.recipes = AsyncRecipes(transport)
        self.roles = AsyncRoles(transport)
        self.system_prompts = AsyncSystemPrompts(transport)
        self.teams = AsyncTeams(transport)
        self.usage = AsyncUsage(transport)
        self.users = AsyncUsers(transport)

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

    def with_options(self, **changes: Unpack[OptionChanges]) -> AsyncAdaptive:
        """The same connection used otherwise: `adaptive.with_options(timeout_s=600).chat.create(...)`."""
        other = object.__new__(type(self))
        other._adopt(self._transport.with_options(replace(self._transport.options, **changes)))
        return other

    async def aclose(self) -> None:
        """Give the connections back; those of `with_options` are the same ones."""
        await self._transport.aclose()

    async def __aenter__(self) -> AsyncAdaptive:
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.aclose()
