"""Jobs: what they do, how far they are, and what they made."""

from __future__ import annotations

from typing import Any

from harmonia.sdk.operations.base import Member, Result, mutation, optional, query
from harmonia.sdk.operations.metrics import MetricName
from harmonia.sdk.operations.models import ProjectName, ServiceName
from harmonia.sdk.operations.recipes import Author, RecipeName

ENDED = frozenset({"COMPLETED", "FAILED", "CANCELED"})
"""The states that a job does not leave."""


class TrainingJobStageOutput(Member, frozen=True):
    """How far a training is."""

    total_num_samples: int | None
    processed_num_samples: int | None
    monitoring_link: str | None
    checkpoints: list[str]


class EvalJobStageOutput(Member, frozen=True):
    """How far an evaluation is."""

    total_num_samples: int | None
    processed_num_samples: int | None


class BatchInferenceJobStageOutput(Member, frozen=True):
    """How far a generation is."""

    total_num_samples: int | None
    processed_num_samples: int | None


class Stage(Result, frozen=True):
    """A part of a job: `status` PENDING, RUNNING, DONE, CANCELLED or ERROR."""

    name: str
    status: str
    info: TrainingJobStageOutput | EvalJobStageOutput | BatchInferenceJobStageOutput | None


class EvaluationResult(Result, frozen=True):
    """What a model achieved in a metric."""

    mean: float
    min: float
    max: float
    stddev: float
    count: int
    sum: float
    model_service: ServiceName
    metric: MetricName


class EvaluationByproducts(Member, frozen=True):
    """Of an evaluation."""

    eval_results: list[EvaluationResult]


class DatasetByproducts(Member, frozen=True):
    """Of a data set."""


class ModelByproducts(Member, frozen=True):
    """Of a model."""


class Artifact(Result, frozen=True):
    """What a job made: `kind` EVALUATION, CUSTOM, DATASET, MODEL or CHECKPOINT."""

    id: str
    name: str
    kind: str
    status: str
    uri: str | None
    metadata: Any
    created_at: int
    byproducts: EvaluationByproducts | DatasetByproducts | ModelByproducts | None


class CustomRecipeJobDetails(Member, frozen=True):
    """What a recipe was given."""

    args: Any


class InteractiveJobDetails(Member, frozen=True):
    """Nothing, for a notebook."""


class Job(Result, frozen=True):
    """A run of a recipe: `status` PENDING, RUNNING, COMPLETED, FAILED or CANCELED, `progress` 0 to 1."""

    id: str
    name: str
    status: str
    kind: str
    progress: float
    error: str | None
    created_at: int
    started_at: int | None
    ended_at: int | None
    duration_ms: int | None
    created_by: Author | None
    project: ProjectName | None
    recipe: RecipeName | None
    stages: list[Stage]
    artifacts: list[Artifact]
    details: CustomRecipeJobDetails | InteractiveJobDetails | None

    @property
    def has_ended(self) -> bool:
        """Whether it is over, one way or another."""
        return self.status in ENDED

    @property
    def eval_results(self) -> dict[str, list[EvaluationResult]]:
        """Results of its evaluations by the key of the model."""
        found: dict[str, list[EvaluationResult]] = {}
        for artifact in self.artifacts:
            if isinstance(artifact.byproducts, EvaluationByproducts):
                for result in artifact.byproducts.eval_results:
                    found.setdefault(result.model_service.key, []).append(result)
        return found


class PageInfo(Result, frozen=True):
    """Where a page of a list ends; `end_cursor` as `after` asks for the next one."""

    has_next_page: bool
    end_cursor: str | None


class JobPage(Result, frozen=True):
    """Some jobs of `total_count`."""

    total_count: int
    page_info: PageInfo
    nodes: list[Job]


class SearchResult(Result, frozen=True):
    """What was found in a project, the newest first, at most 100 of each."""

    jobs: list[Job]
    artifacts: list[Artifact]


JOBS = query("jobs", JobPage, page="CursorPageInput!", filter="ListJobsFilterInput!", order="[OrderPair!]!")
JOB = optional("job", Job, id="UUID!")
CREATE_JOB = mutation("createJob", Job, input="JobInput!")
CANCEL_JOB = mutation("cancelJob", Job, id="UUID!")
UPDATE_JOB = mutation("updateJob", Job, id="UUID!", input="UpdateJobInput!")
DELETE_JOB = mutation("deleteJob", bool, id="UUID!")
ARTIFACTS = query("artifacts", list[Artifact], project="IdOrKey!", filter="ArtifactFilter", limit="Int!", offset="Int!")
SEARCH = query("searchProject", SearchResult, project="IdOrKey!", input="SearchInput!")
PROMOTE = mutation("promoteCheckpoint", Job, input="PromoteCheckpointInput!")
IMPORT_MODEL = mutation("importHfModel", Job, input="AddHFModelInput!")
