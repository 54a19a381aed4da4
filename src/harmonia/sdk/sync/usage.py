# Made by scripts/generate of src/harmonia/sdk/aio/usage.py: change that file, then run the script.
"""What models were used for."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, Literal

from harmonia.sdk.inputs import UsageFilter, checked, timerange
from harmonia.sdk.operations import usage
from harmonia.sdk.operations.base import given
from harmonia.sdk.operations.usage import OverallUsage, ProjectUsage, ServiceUsage, UserUsage
from harmonia.sdk.sync.resource import Resource

Unit = Literal["hour", "day", "week", "month", "quarter", "year", "whole"]


class Usage(Resource):
    """`adaptive.usage`: tokens and answers of the projects whose interactions the caller may read.

    Only stored interactions count: not those with `store=False`, and not what was deleted since.
    unit: of the buckets of `timeseries`, empty ones included; `whole` for a single one. Weeks begin on Mondays, days as
    in the time zone of the filter.
    """

    def overall(self, unit: Unit = "whole", filter: UsageFilter | None = None) -> OverallUsage:
        """Of all models together, and of each."""
        return self._transport.execute(usage.USAGE, filter=_body(unit, filter))

    def by_project(self, unit: Unit = "whole", filter: UsageFilter | None = None) -> Sequence[ProjectUsage]:
        """Of each project, those of most tokens first."""
        return self._transport.execute(usage.USAGE_BY_PROJECT, filter=_body(unit, filter))

    def by_user(self, unit: Unit = "whole", filter: UsageFilter | None = None) -> Sequence[UserUsage]:
        """Of each user and service account."""
        return self._transport.execute(usage.USAGE_BY_USER, filter=_body(unit, filter))

    def by_service(self, filter: UsageFilter | None = None) -> Sequence[ServiceUsage]:
        """Of each model in each project, over the whole time."""
        return self._transport.execute(usage.USAGE_BY_SERVICE, filter=_body("whole", filter))


def _body(unit: str, filter: UsageFilter | None) -> dict[str, Any]:
    wanted = checked(filter or {}, UsageFilter, "filter")
    conditions = [
        {field: {"in": list(wanted[name])}}
        for name, field in (("models", "model"), ("users", "user"), ("projects", "project"))
        if name in wanted
    ]
    return given(
        interval="NO_GROUP_BY_DATE" if unit == "whole" else unit.upper(),
        timerange=timerange(wanted.get("since"), wanted.get("until")),
        timezone=wanted.get("timezone"),
        advancedFilter={"and": conditions} if conditions else None,
    )
