"""Data sets in the config of a recipe."""

import shutil
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from pydantic import BaseModel, ValidationError

from harmonia.client.parameters import Dataset
from harmonia.client.parameters.dataset_kinds import Completion, DatasetKind, Metric, Preference, Prompt
from harmonia.client.recipe.context import RecipeContext
from harmonia.errors import InvalidRequestError
from tests.unit.parameters.rows import COMPLETION, METRIC, PREFERENCE, PROMPT, write


class Config(BaseModel):
    """A recipe's."""

    dataset: Dataset[Prompt]
    others: set[Dataset[Completion]] = set()


def test_a_key_a_file_and_an_object(tmp_path: Path) -> None:
    file = str(write(tmp_path, PROMPT).rename(tmp_path / "rows.txt"))
    for given, key, local in (
        ("a key", "a key", None),
        (file, file, file),
        ("later.jsonl", "later.jsonl", "later.jsonl"),
        ({"dataset_key": "a key", "local_file_path": file}, "a key", file),
        (str(tmp_path), str(tmp_path), None),
    ):
        dataset = Config.model_validate({"dataset": given}).dataset
        assert (dataset.dataset_key, dataset.local_file_path, dataset.feedback_key) == (key, local, None)


def test_configs_survive_a_round_trip() -> None:
    config = Config.model_validate({"dataset": "rows.jsonl", "others": ["a", "b", "a"]})
    assert len(config.others) == 2
    assert Config.model_validate_json(config.model_dump_json()) == config
    assert config.model_dump(mode="json")["dataset"] == {
        "dataset_key": "rows.jsonl",
        "feedback_key": None,
        "local_file_path": "rows.jsonl",
    }


def test_a_form_asks_for_a_string() -> None:
    schema = Config.model_json_schema()
    dataset = schema["$defs"][schema["properties"]["dataset"]["$ref"].rsplit("/", maxsplit=1)[-1]]
    assert (dataset["type"], dataset["kind"]) == ("string", "Prompt")
    assert Dataset.model_json_schema()["kind"] == "Mixed"


@pytest.mark.parametrize("given", ["", " ", {"dataset_key": ""}, 3, None, "\0", "~nobody-here", "x" * 5000])
def test_strange_keys(given: Any) -> None:
    if isinstance(given, str) and given.strip():
        assert Dataset.model_validate(given).local_file_path is None
    else:
        with pytest.raises(ValidationError, match=r"dataset_key|Dataset"):
            Dataset.model_validate(given)


async def test_the_kind_decides_what_is_read(tmp_path: Path) -> None:
    file = str(write(tmp_path, METRIC))
    (prompt,) = await Dataset[Prompt](dataset_key="local", local_file_path=file).load()
    (rated,) = await Dataset[Metric](dataset_key="local", local_file_path=file, feedback_key="correct").load()
    assert (prompt.metadata, rated.metadata) == ({}, {"res": 1.0})
    assert (prompt.get_turn_weights(), rated.get_turn_weights()) == ([0.0], [0.0, 1.0])
    with pytest.raises(InvalidRequestError, match="line 1: good_completion: Field required; bad_completion: Field"):
        await Dataset[Preference](dataset_key="local", local_file_path=file).load()


def test_kinds_parse_rows() -> None:
    for kind, row in ((Prompt(), PROMPT), (Completion(), COMPLETION), (Metric(), METRIC), (Preference(), PREFERENCE)):
        assert type(kind.parse(row)) is kind.formats[0]
    assert [type(DatasetKind("any").parse(row)) for row in (PROMPT, METRIC)] == [
        Prompt().formats[0],
        Metric().formats[0],
    ]
    with pytest.raises(InvalidRequestError, match="completion: Field required"):
        Completion().parse(PROMPT)


async def test_a_key_needs_a_control_plane(lone_ctx: RecipeContext) -> None:
    for action in (Dataset(dataset_key="key").load(), Dataset(dataset_key="key").check(lone_ctx)):
        with pytest.raises(
            InvalidRequestError, match=r"'key' is not a file, and there is no control plane .* \.jsonl file"
        ):
            await action


async def test_every_row_of_a_file_is_checked(
    lone_ctx: RecipeContext, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    await Dataset.model_validate(str(write(tmp_path, {"comment": 1}, PROMPT))).check(lone_ctx)
    assert caplog.text == ""  # what is skipped is told when the data set is loaded
    file = str(write(tmp_path, PROMPT, METRIC))
    await Dataset(dataset_key="rated", feedback_key="correct", local_file_path=file).check(lone_ctx)
    for lines, problem in (([PROMPT, b"garbage"], "line 2: not JSON"), ([], "no usable row")):
        with pytest.raises(InvalidRequestError, match=problem):
            await Dataset.model_validate(str(write(tmp_path, *lines))).check(lone_ctx)
    for path in ("none.jsonl", "\0.jsonl"):
        with pytest.raises(InvalidRequestError, match="cannot read the data set"):
            await Dataset.model_validate(path).check(lone_ctx)


async def test_a_control_plane_has_the_last_word(lone_ctx: RecipeContext, tmp_path: Path) -> None:
    stored = write(tmp_path, COMPLETION)
    lone_ctx.control_plane = Store(stored)  # type: ignore[assignment]
    dataset = Dataset(dataset_key="team/blue", local_file_path="ignored.jsonl")
    await dataset.check(lone_ctx)
    (thread,) = await dataset.load(lone_ctx)
    assert thread.completion() == "Blue."
    assert (lone_ctx.datasets_dir / "team" / "blue.jsonl").read_bytes() == stored.read_bytes()
    with pytest.raises(InvalidRequestError, match="no data set 'other'"):
        await Dataset(dataset_key="other").check(lone_ctx)


class Store:
    """The part of a control plane that keeps data sets."""

    def __init__(self, file: Path) -> None:
        self.file = file

    async def get_dataset_config(self, dataset_key: str) -> SimpleNamespace:
        """What it knows of one."""
        if dataset_key != "team/blue":
            raise InvalidRequestError(f"no data set {dataset_key!r}")
        return SimpleNamespace(dataset_key=dataset_key)

    def download_dataset(self, dataset_key: str, file_path: str) -> None:
        """Write it to a file."""
        assert dataset_key == "team/blue"
        shutil.copy(self.file, file_path)
