"""The commands that talk to a server: ids for other programs, tables for people."""

from __future__ import annotations

import asyncio
import json
import uuid
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from sqlalchemy import select
from typer.testing import CliRunner, Result

from harmonia.cli.main import app
from harmonia.config.control import ControlConfig
from harmonia.sdk import Adaptive
from harmonia.sdk.operations.jobs import CustomRecipeJobDetails
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.projects import Project
from harmonia.server.services.interactions.interaction import Interaction, rows_of
from tests.integration.control.conftest import ADMIN, Plane

PROJECT = "lab"
RECIPE = """
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    word: str
    steps: int = 3

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    pass
"""
Harmonia = Callable[..., Result]


@pytest.fixture(scope="module")
def running(tmp_path_factory: pytest.TempPathFactory, tiny: Path) -> Iterator[Plane]:
    with Plane(ControlConfig(data_dir=tmp_path_factory.mktemp("plane"))) as plane:
        with Adaptive(plane.url, plane.api_key) as admin:
            admin.projects.create(PROJECT)
            admin.models.add(str(tiny), "Tiny", "tiny")
            admin.models.add_to_project("tiny", PROJECT)
        yield plane


@pytest.fixture
def harmonia(running: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Harmonia:
    """Run a command as the admin in the project; its output is not a terminal."""
    monkeypatch.setenv("HARMONIA_CONFIG", str(tmp_path / "config.toml"))
    monkeypatch.setenv("ADAPTIVE_BASE_URL", running.url)
    monkeypatch.setenv("ADAPTIVE_API_KEY", running.api_key)
    monkeypatch.setenv("DEFAULT_PROJECT", PROJECT)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments: str | Path, input: str | None = None, exit_code: int = 0) -> Result:
        result = CliRunner().invoke(app, [str(argument) for argument in arguments], input=input)
        assert result.exit_code == exit_code, result.output
        return result

    return run


@pytest.fixture
def recipe(tmp_path: Path) -> Path:
    """A file."""
    file = tmp_path / "lesson.py"
    file.write_text(RECIPE)
    return file


def ids(result: Result) -> list[str]:
    """The lines, each of which must be an id."""
    lines = result.stdout.splitlines()
    assert all(str(uuid.UUID(line)) == line for line in lines), result.stdout
    return lines


def test_lists_are_ids_in_a_pipe_and_tables_on_a_terminal(harmonia: Harmonia, monkeypatch: pytest.MonkeyPatch) -> None:
    assert len(ids(harmonia("models"))) == len(ids(harmonia("models", "--all"))) == 1
    assert len(ids(harmonia("role", "list"))) >= 4
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert all(word in harmonia("models", "--all").stdout for word in ("key", "state", "tiny", "OFFLINE"))
    assert ADMIN in harmonia("user", "list").stdout


def test_a_recipe_is_published_once_replaced_by_force_and_described(harmonia: Harmonia, recipe: Path) -> None:
    (published,) = ids(harmonia("publish", recipe))
    assert "--force" in harmonia("publish", recipe, exit_code=1).stderr
    assert ids(harmonia("publish", recipe, "--force", "-n", "A Lesson", "-k", "lesson")) == [published]
    assert published in ids(harmonia("recipes"))
    schema = json.loads(harmonia("schema", "lesson").stdout)
    assert schema["required"] == ["word"]
    assert schema == json.loads(harmonia("schema", published).stdout)
    shown = harmonia("launch", "lesson", "--", "--help").stdout
    assert "--word TEXT" in shown
    assert "harmonia launch lesson --word ..." in shown
    assert "did you mean --word" in harmonia("launch", "lesson", "--", "--wrod", "x", exit_code=1).stderr
    assert "`harmonia recipes` lists them" in harmonia("schema", "nothing", exit_code=1).stderr


def test_a_folder_without_main_is_refused(harmonia: Harmonia, tmp_path: Path) -> None:
    (tmp_path / "empty").mkdir()
    assert "has no main.py" in harmonia("publish", tmp_path / "empty", exit_code=1).stderr


def test_a_data_set_is_uploaded(harmonia: Harmonia, running: Plane, tmp_path: Path) -> None:
    file = tmp_path / "My Rows.jsonl"
    file.write_text('{"messages": [{"role": "user", "content": "?"}], "completion": "!"}\n')
    (dataset,) = ids(harmonia("upload", file))
    with Adaptive(running.url, running.api_key, PROJECT) as admin:
        found = admin.datasets.get(dataset)
    assert found is not None
    assert (found.key, found.name, found.records) == ("my-rows", "My Rows", 1)
    assert "nowhere.jsonl" in harmonia("upload", "nowhere.jsonl", exit_code=1).stderr
    assert "Project 'nowhere' does not exist" in harmonia("models", "--project", "nowhere", exit_code=1).stderr


def test_people_roles_and_teams(harmonia: Harmonia, monkeypatch: pytest.MonkeyPatch) -> None:
    (team,) = ids(harmonia("team", "create", "red", "-n", "Red"))
    assert team in ids(harmonia("team", "list"))
    (role,) = ids(harmonia("role", "create", "writer", "project:read"))
    assert ids(harmonia("role", "add-permission", "writer", "project:update", "project:infer")) == [role]
    harmonia("role", "remove-permission", role, "project:infer")
    created = harmonia("user", "create", "robot", "-t", "system", "--team", "red=writer")
    (robot,) = ids(created)
    assert "API key: hk-" in created.stderr
    (ada,) = ids(harmonia("user", "create", "Ada", "-e", "ada@example.com"))
    assert ids(harmonia("team", "add-member", "red", "ada@example.com", "writer")) == [ada]
    assert "--email" in harmonia("user", "create", "Bob", exit_code=1).stderr
    assert "TEAM=ROLE" in harmonia("user", "create", "x", "-t", "system", "--team", "red", exit_code=1).stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert "project:read, project:update" in harmonia("role", "describe", "writer").stdout
    assert "red=writer" in harmonia("user", "describe", "ada@example.com").stdout
    assert "red=writer" not in harmonia("team", "remove-member", "red", ada).stdout
    harmonia("user", "delete", robot)
    assert "there is no user" in harmonia("user", "describe", "nobody", exit_code=1).stderr


def test_users_are_listed_by_their_type(harmonia: Harmonia, running: Plane) -> None:
    (robot,) = ids(harmonia("user", "create", "listed", "-t", "system"))
    people, programs = ids(harmonia("user", "list", "-t", "human")), ids(harmonia("user", "list", "--type", "system"))
    assert robot in programs
    assert not set(people) & set(programs)
    assert set(people) | set(programs) == set(ids(harmonia("user", "list")))


def test_what_is_no_id_of_a_job_is_told(harmonia: Harmonia) -> None:
    for command in ("job", "cancel"):
        assert "there is no job 'first'" in harmonia(command, "first", exit_code=1).stderr


def test_parameters_come_from_a_file_and_published_recipes_from_a_pipe(
    harmonia: Harmonia, running: Plane, recipe: Path, tmp_path: Path
) -> None:
    (published,) = ids(harmonia("publish", recipe, "-k", "piped"))
    values = tmp_path / "values.json"
    values.write_text('{"word": "hello", "steps": 2}')
    (job,) = ids(harmonia("launch", published, "--parameters", values, "-n", "first", "--", "--steps", "7"))
    with Adaptive(running.url, running.api_key) as admin:
        found = admin.jobs.get(job)
    assert found is not None
    assert isinstance(found.details, CustomRecipeJobDetails)
    assert (found.name, found.details.args) == ("first", {"word": "hello", "steps": 7})
    harmonia("cancel", job)


def offered(line: str, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """What bash would offer for the last word of a line."""
    monkeypatch.setenv("_HARMONIA_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", line)
    monkeypatch.setenv("COMP_CWORD", str(len(line.split(" ")) - 1))
    return CliRunner().invoke(app, []).output.split()


def test_a_shell_completes_names_of_the_server(
    harmonia: Harmonia, recipe: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    harmonia("publish", recipe, "-k", "completed")
    assert offered("harmonia schema comp", monkeypatch) == ["completed"]
    assert "sft" in offered("harmonia launch ", monkeypatch)
    assert offered("harmonia models --project l", monkeypatch) == [PROJECT]
    assert offered("harmonia launch sft --compute-pool d", monkeypatch) == ["default"]
    assert "launch" in offered("harmonia la", monkeypatch)
    monkeypatch.setenv("ADAPTIVE_BASE_URL", "http://127.0.0.1:1")
    assert offered("harmonia schema comp", monkeypatch) == []


def test_settings_are_kept_and_the_environment_goes_before_them(
    harmonia: Harmonia, running: Plane, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("ADAPTIVE_BASE_URL", "ADAPTIVE_API_KEY", "DEFAULT_PROJECT"):
        monkeypatch.delenv(name)
    assert "harmonia set-api-key" in harmonia("models", exit_code=1).stderr
    assert "not set" in harmonia("config").stdout
    harmonia("config", "--base-url", running.url, "-p", PROJECT)
    harmonia("set-api-key", input=f"{running.api_key}\n")
    assert (tmp_path / "config.toml").stat().st_mode & 0o777 == 0o600
    shown = harmonia("config").stdout
    assert running.url in shown
    assert running.api_key not in shown
    assert len(ids(harmonia("models"))) == 1
    monkeypatch.setenv("ADAPTIVE_API_KEY", "wrong")
    assert "authentication" in harmonia("models", exit_code=1).stderr
    assert "no address of a server" in harmonia("config", "--base-url", "localhost", exit_code=1).stderr
    assert "one word" in harmonia("set-api-key", "", input="\n", exit_code=1).stderr


def test_where_nobody_listens_is_told(harmonia: Harmonia, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ADAPTIVE_BASE_URL", "http://127.0.0.1:1")
    assert "no server listens at http://127.0.0.1:1" in harmonia("team", "create", "x", exit_code=1).stderr


def test_usage_is_told_by_whom_and_when(harmonia: Harmonia, running: Plane, monkeypatch: pytest.MonkeyPatch) -> None:
    with Adaptive(running.url, running.api_key, PROJECT) as admin:
        tiny, me = admin.models.get("tiny"), admin.users.me()
    assert tiny is not None and me is not None and running.services is not None
    usage = {"prompt_tokens": 10, "completion_tokens": 2, "total_tokens": 12}
    project = asyncio.run(project_id(running))
    answer = Interaction(
        project_id=project,
        messages=[{"role": "user", "content": "?"}],
        completion="!",
        model_id=uuid.UUID(tiny.id),
        created_by=uuid.UUID(me.id),
        usage=usage,
    )
    asyncio.run(written(running, answer))
    for by, name in (("model", "tiny"), ("project", PROJECT), ("user", ADMIN)):
        assert harmonia("usage", "--by", by).stdout == f"{name}\t10\t2\t1\n"
    (line,) = harmonia("usage", "--every", "year", "--since", "now - 1 hour", "-p", PROJECT).stdout.splitlines()
    assert line.split("\t")[::2] == ["tiny", "10", "1"] and len(line.split("\t")) == 5
    assert harmonia("usage", "-p", "elsewhere").stdout == ""
    assert "'Europe/Paris'" in harmonia("usage", "--timezone", "Mars", exit_code=1).stderr
    assert "is no moment" in harmonia("usage", "--since", "yesterday", exit_code=1).stderr
    monkeypatch.setenv("FORCE_COLOR", "1")
    assert all(word in harmonia("usage").stdout for word in ("prompt tokens", "answers", "tiny"))


async def project_id(running: Plane) -> uuid.UUID:
    database = Database(running.config.database_address)
    async with database.read() as session:
        found = (await session.execute(select(Project.id).where(Project.key == PROJECT))).scalar_one()
    await database.close()
    return found


async def written(running: Plane, answer: Interaction) -> None:
    database = Database(running.config.database_address)
    await database.insert({Completion: [rows_of(answer)[0]]})
    await database.close()


def test_artifacts_are_listed_and_fetched(harmonia: Harmonia, recipe: Path, tmp_path: Path) -> None:
    recipe.write_text(
        RECIPE.replace("    pass", "    CustomArtifact('notes', ctx).write(config.word)").replace(
            "from harmonia", "from harmonia.client.artifacts import CustomArtifact\nfrom harmonia", 1
        )
    )
    (published,) = ids(harmonia("publish", recipe, "-k", "noting"))
    (job,) = ids(harmonia("launch", published, "--gpus", "0", "--follow", "--", "--word", "blue"))
    (artifact,) = ids(harmonia("artifact", "list", "--job", job))
    assert ids(harmonia("artifact", "list", "--kind", "custom")) == [artifact]
    assert ids(harmonia("artifact", "list", "--kind", "model", "--kind", "checkpoint")) == []
    assert "there are evaluation" in harmonia("artifact", "list", "--kind", "cake", exit_code=1).stderr
    harmonia("artifact", "download", artifact, "--to", tmp_path / "notes")
    printed = harmonia("artifact", "download", artifact).stdout_bytes
    assert printed == (tmp_path / "notes").read_bytes() and b"blue" in printed
    assert "checkpoints become models" in harmonia("artifact", "promote", artifact, "tiny", "X", exit_code=1).stderr


def test_system_prompts_are_kept_used_and_forgotten(harmonia: Harmonia, tmp_path: Path) -> None:
    file = tmp_path / "manners.txt"
    file.write_text("You answer in {{ language }}.")
    (first,) = ids(harmonia("prompt", "create", "manners", file))
    (second,) = ids(harmonia("prompt", "create", "manners", "-", input="You answer."))
    assert ids(harmonia("prompt", "list")) == [second, first]
    ids(harmonia("prompt", "use", "tiny", first))
    assert "begins with it" in harmonia("prompt", "delete", first, exit_code=1).stderr
    assert "give the id of a prompt, or --none" in harmonia("prompt", "use", "tiny", exit_code=1).stderr
    ids(harmonia("prompt", "use", "tiny", "--none"))
    for prompt in (first, second):
        harmonia("prompt", "delete", prompt)
    assert ids(harmonia("prompt", "list")) == []
