"""Data sets."""

from __future__ import annotations

from harmonia.sdk.operations.base import Result, mutation, optional, query
from harmonia.sdk.operations.metrics import Metric


class MetricUsage(Result, frozen=True):
    """How often a data set has a score in a metric."""

    score_count: int
    comparison_count: int
    metric: Metric


class Dataset(Result, frozen=True):
    """Lines for training and evaluation; `records` is their number, `created_at` a moment as in RFC 3339."""

    id: str
    key: str | None
    name: str
    kind: str
    records: int | None
    created_at: str
    download_url: str
    metrics_usage: list[MetricUsage]


class Processing(Result, frozen=True):
    """How far the server is with an uploaded file: `status` PENDING, DONE or ERROR, `progress` 0 to 1."""

    dataset_id: str
    status: str
    progress: float
    error: str | None


DATASETS = query("datasets", list[Dataset], project="IdOrKey!")
DATASET = optional("dataset", Dataset, idOrKey="IdOrKey!", project="IdOrKey!")
CREATE_DATASET = mutation("createDataset", Dataset, input="DatasetCreate!", file="Upload!")
CREATE_FROM_UPLOAD = mutation("createDatasetFromMultipartUpload", Processing, input="DatasetCreateFromMultipartUpload!")
PROCESSING = query("datasetUploadProcessingStatus", Processing, input="DatasetUploadProcessingStatusInput!")
DELETE_DATASET = mutation("deleteDataset", bool, idOrKey="IdOrKey!", project="IdOrKey!")
