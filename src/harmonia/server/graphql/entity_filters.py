"""Which projects and A/B tests are wanted: for types that would import each other's modules."""

from __future__ import annotations

from enum import Enum

import strawberry

from harmonia.server.graphql.scalars import IdOrKey
from harmonia.server.services.abtests.abtests import CampaignWish


@strawberry.input
class ProjectFilter:
    """Which projects are wanted."""

    is_archived: bool | None = None


@strawberry.enum
class AbcampaignStatus(Enum):
    """How far a test is. WARMUP: some model has too few scores for a decision."""

    WARMUP = "WARMUP"
    IN_PROGRESS = "IN_PROGRESS"
    DONE = "DONE"
    CANCELLED = "CANCELLED"


@strawberry.input
class AbCampaignFilter:
    """Which tests are wanted. active: still running."""

    active: bool | None = None
    status: AbcampaignStatus | None = None
    project: IdOrKey | None = None

    def wish(self, project: str | None = None) -> CampaignWish:
        """For services. project: the only one that counts, whatever the filter says."""
        status = None if self.status is None else self.status.value
        return CampaignWish(is_active=self.active, status=status, project=project or self.project)
