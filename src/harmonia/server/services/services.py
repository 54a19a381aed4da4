"""All services of the control plane, put together once."""

from __future__ import annotations

from harmonia.config.control import ControlConfig
from harmonia.server.db.database import Database
from harmonia.server.services.abtests.abtests import ABTests, make_default
from harmonia.server.services.access import Access
from harmonia.server.services.audit import AuditLog
from harmonia.server.services.datasets.datasets import Datasets
from harmonia.server.services.datasets.filtered import FilteredDatasets
from harmonia.server.services.datasets.uploads import Uploads
from harmonia.server.services.figures.activity import ActivityFigures
from harmonia.server.services.figures.scores import ScoreFigures
from harmonia.server.services.figures.usage import UsageFigures
from harmonia.server.services.files import Files
from harmonia.server.services.graders.graders import Graders
from harmonia.server.services.graders.grading import Grading
from harmonia.server.services.graders.judging import Judges
from harmonia.server.services.graders.records import RecordCheck
from harmonia.server.services.interactions.feedback import Feedback
from harmonia.server.services.interactions.inference import Inference
from harmonia.server.services.interactions.interactions import Interactions
from harmonia.server.services.interactions.journal import Journal
from harmonia.server.services.interactions.selection import Selections
from harmonia.server.services.interactions.surroundings import Surroundings
from harmonia.server.services.interactions.writer import InteractionWriter
from harmonia.server.services.jobs.imports import HubImports
from harmonia.server.services.jobs.jobs import Jobs
from harmonia.server.services.jobs.monitoring import Monitoring
from harmonia.server.services.jobs.promotions import Promotions
from harmonia.server.services.jobs.recipes import Recipes
from harmonia.server.services.jobs.reports import JobReports
from harmonia.server.services.jobs.runner import JobRunner
from harmonia.server.services.jobs.search import JobSearch
from harmonia.server.services.metrics import MetricsRegistry
from harmonia.server.services.models.allotments import Allotments
from harmonia.server.services.models.asking import Asking
from harmonia.server.services.models.compute import Compute
from harmonia.server.services.models.deletion import Deletion
from harmonia.server.services.models.deployments import Deployments
from harmonia.server.services.models.devices import find_pools
from harmonia.server.services.models.external import ExternalModels
from harmonia.server.services.models.models import Models
from harmonia.server.services.models.serving import Serving
from harmonia.server.services.models.system_prompts import SystemPrompts
from harmonia.server.services.notifications.integrations import Integrations
from harmonia.server.services.notifications.notifications import Notifications
from harmonia.server.services.people.api_keys import ApiKeys
from harmonia.server.services.people.login import Logins
from harmonia.server.services.people.people import People
from harmonia.server.services.people.project_changes import ProjectChanges
from harmonia.server.services.people.projects import Projects
from harmonia.server.services.people.user_changes import UserChanges
from harmonia.server.services.secrets import Secrets


class Services:
    """What REST and GraphQL are skins of."""

    def __init__(self, config: ControlConfig, database: Database) -> None:
        self.config = config
        self.database = database
        self._make_people(config, database)
        self.files = Files(config)
        self.uploads = Uploads(config, database, self.files)
        self.datasets = Datasets(database, self.files, self.uploads)
        self.recipes = Recipes(database, config.folder / "cache")
        self.monitoring = Monitoring(database)
        self.secrets = Secrets(config)
        self.notifications = Notifications(config.notifications, database, self.secrets)
        self.external = ExternalModels(config.external_models, self.secrets, config.http_client.timeout_secs)
        self.models = Models(database, config.registry, self.secrets, self.external)
        self.allotments = Allotments(find_pools(config.compute))
        self.serving = Serving(config, database, self.notifications, self.allotments)
        self.deletion = Deletion(database, config.registry)
        self.imports = HubImports(config, database, self.models, self.secrets, self.notifications)
        self.promotions = Promotions(config.registry, database, self.models, self.notifications)
        self.project_changes = ProjectChanges(database, self.serving)
        self.deployments = Deployments(database, self.serving, self.deletion)
        self.system_prompts = SystemPrompts(database)
        self.compute = Compute(database, self.serving, self.allotments)
        self.job_runner = JobRunner(config, database, self.notifications, self.allotments)
        asking = Asking(self.serving.router, self.external, config.server.timeout_seconds)
        self.graders = Graders(config.graders, database, Judges(asking))
        records = RecordCheck(database, self.datasets, self.graders.remote)
        self.jobs = Jobs(
            database, self.files, self.recipes, self.job_runner, self.notifications, self.allotments, records
        )
        self.job_search = JobSearch(database, self.recipes)
        self.job_reports = JobReports(
            database, self.files, self.uploads, self.models, self.notifications, self.job_runner
        )
        self.abtests = ABTests(database, make_default)
        self.inference = Inference(database, self.serving.router, self.abtests)
        self.metrics_registry = MetricsRegistry(database)
        self.integrations = Integrations(database, self.secrets, self.notifications)
        self._make_interactions(config, database)

    def _make_people(self, config: ControlConfig, database: Database) -> None:
        """Who may do what, where."""
        self.access = Access(database)
        self.logins = Logins(config, database)
        self.api_keys = ApiKeys(database)
        self.audit = AuditLog(database)
        self.people = People(database)
        self.user_changes = UserChanges(database)
        self.projects = Projects(database)

    def _make_interactions(self, config: ControlConfig, database: Database) -> None:
        """What was asked and answered, and what is made of it."""
        journal = Journal(config.folder / "journal", database.shown)
        self.interaction_writer = writer = InteractionWriter(database, journal, measured=self.abtests.measured)
        self.interactions = Interactions(database, writer)
        self.surroundings = Surroundings(database)
        self.selections = Selections(database, writer)
        self.filtered_datasets = FilteredDatasets(database, writer, self.selections, self.datasets)
        self.feedback = Feedback(database, writer, self.abtests)
        self.grading = Grading(database, writer, self.graders, self.abtests)
        self.usage = UsageFigures(database, writer)
        self.activity = ActivityFigures(database, writer)
        self.scores = ScoreFigures(database, writer)

    async def start(self) -> None:
        """Begin what runs in the background."""
        self.interaction_writer.start()
        await self.compute.start()
        await self.serving.start()
        await self.uploads.start()
        await self.datasets.start()
        await self.deletion.start()
        await self.imports.start()
        await self.promotions.start()
        await self.job_runner.start()
        self.notifications.start()

    async def close(self) -> None:
        """End it, losing nothing, and close the database."""
        await self.imports.close()
        await self.promotions.close()
        await self.job_runner.close()
        await self.datasets.close()
        await self.uploads.close()
        await self.serving.close()
        await self.external.close()
        await self.interaction_writer.close()
        await self.notifications.close()
        await self.graders.close()
        await self.database.close()
