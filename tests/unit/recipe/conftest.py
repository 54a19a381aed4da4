"""A small worker, a context on it, and folders with recipes."""

from collections.abc import AsyncIterator, Callable
from pathlib import Path

import pytest

from harmonia.client.recipe import JournalJobNotifier, RecipeConfig, RecipeContext
from tests.unit.client.small_worker import SmallWorker

WriteRecipe = Callable[[dict[str, str]], Path]


@pytest.fixture
async def worker() -> AsyncIterator[SmallWorker]:
    async with SmallWorker().serving() as running:
        yield running


@pytest.fixture
def journal(tmp_path: Path) -> JournalJobNotifier:
    return JournalJobNotifier(tmp_path / "job", "j1")


@pytest.fixture
def launch(worker: SmallWorker, tmp_path: Path) -> RecipeConfig:
    return RecipeConfig(harmony_url=worker.address, working_dir=str(tmp_path / "work"))


@pytest.fixture
async def ctx(launch: RecipeConfig, journal: JournalJobNotifier) -> AsyncIterator[RecipeContext]:
    context = await RecipeContext.from_config(launch, job=journal)
    yield context
    await context.close()


@pytest.fixture
def write(tmp_path: Path) -> WriteRecipe:
    """Write files into a folder of recipes; the folder."""

    def write_files(files: dict[str, str]) -> Path:
        folder = tmp_path / "recipes"
        for name, text in files.items():
            file = folder / name
            file.parent.mkdir(parents=True, exist_ok=True)
            file.write_text(text, encoding="utf-8")
        return folder

    return write_files
