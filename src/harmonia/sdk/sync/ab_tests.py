# Made by scripts/generate of src/harmonia/sdk/aio/ab_tests.py: change that file, then run the script.
"""A/B tests."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from harmonia.errors import InvalidRequestError
from harmonia.sdk.operations import ab_tests
from harmonia.sdk.operations.ab_tests import AbTest, ReportedAbTest
from harmonia.sdk.operations.base import given
from harmonia.sdk.sync.resource import Resource

_SCORES = {"metric": "DIRECT", "preference": "COMPARISON"}


class AbTests(Resource):
    """`adaptive.ab_tests`: models that share the traffic of a project until one is better."""

    def create(
        self,
        ab_test_key: str,
        feedback_key: str,
        models: Sequence[str],
        traffic_split: float = 1.0,
        feedback_type: Literal["metric", "preference"] = "metric",
        auto_deploy: bool = False,
        project: str | None = None,
    ) -> AbTest:
        """Begin one. traffic_split: share, 0 to 1, of the default model's traffic; auto_deploy: the winner becomes it.

        feedback_type: whether scores or preferences in `feedback_key` decide.
        """
        if feedback_type not in _SCORES:
            raise InvalidRequestError(f"feedback_type is metric or preference, not {feedback_type!r}")
        body = {
            "key": ab_test_key,
            "metric": feedback_key,
            "project": self._project(project),
            "modelServices": models,
            "trafficSplit": traffic_split,
            "autoDeploy": auto_deploy,
            "scoreType": _SCORES[feedback_type],
        }
        return self._transport.execute(ab_tests.CREATE_AB_TEST, input=body)

    def list(
        self,
        active: bool | None = None,
        status: Literal["warmup", "in_progress", "done", "cancelled"] | None = None,
        project: str | None = None,
    ) -> Sequence[AbTest]:
        """Those of a project."""
        wanted = given(active=active, status=status and status.upper(), project=self._project(project))
        return self._transport.execute(ab_tests.AB_TESTS, filter=wanted)

    def get(self, key: str) -> ReportedAbTest | None:
        """One of them, with its report."""
        return self._transport.execute(ab_tests.AB_TEST, idOrKey=key)

    def cancel(self, key: str) -> str:
        """End one without a result."""
        return self._transport.execute(ab_tests.CANCEL_AB_TEST, input=key)
