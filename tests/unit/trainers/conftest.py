"""What records what trainers report."""

import pytest

from tests.unit.trainers.recorders import Stage


@pytest.fixture
def stage() -> Stage:
    return Stage()
