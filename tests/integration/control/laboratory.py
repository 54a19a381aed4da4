"""A project with one of everything, and people with each role: inside of it, in the reserved team, and elsewhere."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import httpx
from sqlalchemy import select

from harmonia.config.control import ControlConfig
from harmonia.server.db.database import Database
from harmonia.server.db.interactions import Completion
from harmonia.server.db.jobs import Job, JobArtifact
from harmonia.server.db.models import Model
from harmonia.server.db.people import User
from harmonia.server.db.projects import Project
from harmonia.server.db.recipes import Recipe
from harmonia.server.graphql.schema import make_schema
from harmonia.server.services.interactions.interaction import Interaction, rows_of
from harmonia.server.services.permissions import DEFAULT_ROLES
from tests.integration.control.conftest import ADMIN, Plane

PROJECT, ANYWHERE, TEAM, RESERVED = "project", "anywhere", "team", "reserved"
"""Where a permission must hold: in the project, in some team, in the named team, in the team `admin`."""
P = "tickets"
RECIPE = """
from harmonia.client.recipe import RecipeContext, recipe_main

@recipe_main
async def main(ctx: RecipeContext) -> None:
    pass
"""


@dataclass(frozen=True)
class Attempt:
    """One mutation. variables: values, or names of things in the laboratory with a `$` before them."""

    selection: str
    permission: str | None
    """None: its own rule, that nobody here meets."""
    where: str = PROJECT
    variables: dict[str, Any] = field(default_factory=dict)
    file: tuple[str, bytes] | None = None


@dataclass
class Laboratory:
    """A project with one of everything, and people."""

    plane: Plane
    http: httpx.Client
    people: dict[tuple[str, str], str]
    """Keys by team and role."""
    things: dict[str, Any]

    def post(self, api_key: str, name: str, attempt: Attempt) -> str | None:
        """The code of the refusal, or None."""
        schema_field = MUTATIONS[name]
        arguments = ", ".join(f"${argument}: {kind.type}" for argument, kind in schema_field.args.items())
        passed = ", ".join(f"{argument}: ${argument}" for argument in schema_field.args)
        query = f"mutation({arguments}) {{ {name}({passed}) {attempt.selection} }}"
        body = {"query": query, "variables": self._filled(attempt.variables)}
        headers = {"authorization": f"Bearer {api_key}"}
        if attempt.file is None:
            answer = self.http.post("/api/graphql", json=body, headers=headers)
        else:
            body["variables"]["file"] = None
            form = {"operations": json.dumps(body), "map": '{"0": ["variables.file"]}'}
            answer = self.http.post("/api/graphql", data=form, files={"0": attempt.file}, headers=headers)
        assert answer.status_code == 200, (name, answer.text)
        errors = answer.json().get("errors")
        if not errors:
            return None
        assert "an error of its own" not in errors[0]["message"], (name, errors)
        code: str | None = (errors[0].get("extensions") or {}).get("code")
        assert code is not None, (name, errors)
        return code

    def _filled(self, value: Any) -> Any:
        if isinstance(value, dict):
            return {name: self._filled(item) for name, item in value.items()}
        if isinstance(value, list):
            return [self._filled(item) for item in value]
        return self.things[value[1:]] if isinstance(value, str) and value.startswith("$") else value


MUTATIONS = make_schema()._schema.mutation_type.fields  # type: ignore[union-attr]
GRADER = {"name": "kind", "graderType": "CUSTOM", "graderConfig": {"custom": {"description": "by hand"}}}
WEBHOOK = {"connection": {"webhook": {"url": "https://example.com/x", "method": "POST", "headers": {}}}}


@contextmanager
def furnished(folder: Path) -> Iterator[Laboratory]:
    """A laboratory on a control plane of its own."""
    running = Plane(ControlConfig(data_dir=folder))
    with running as plane, httpx.Client(base_url=plane.url, timeout=60) as http:
        built = Laboratory(plane, http, {}, {})
        _furnish(built)
        yield built


def _furnish(built: Laboratory) -> None:
    def made(name: str, selection: str = "{ id }", file: tuple[str, bytes] | None = None, **variables: Any) -> Any:
        attempt = Attempt(selection, None, variables=variables, file=file)
        assert built.post(built.plane.api_key, name, attempt) is None, name

    def asked(query: str) -> Any:
        headers = {"authorization": f"Bearer {built.plane.api_key}"}
        return built.http.post("/api/graphql", json={"query": query}, headers=headers).json()["data"]

    made("createProject", input={"name": "Tickets", "key": P})
    made("createTeam", input={"name": "elsewhere", "key": "elsewhere"})
    made("createRole", input={"name": "Empty", "key": "empty", "permissions": []})
    external = {"provider": "OPEN_AI", "providerData": {"openAI": {"apiKey": "secret", "externalModelId": "x"}}}
    for name in ("one", "two"):
        made("addExternalModel", input={"name": name, **external})
        made("deployModel", "{ warnings }", input={"project": P, "model": name, "wait": False})
    made("addExternalModel", input={"name": "off", **external})
    made("addModelsToProject", "{ success }", input={"project": P, "models": ["off"]})
    made("createMetric", project=P, input={"name": "quality", "key": "quality", "kind": "SCALAR"})
    campaign = {"key": "running", "metric": "quality", "project": P, "modelServices": ["one", "two"]}
    made("createAbCampaign", input={**campaign, "autoDeploy": False, "trafficSplit": 0.5})
    made("createGrader", project=P, input={**GRADER, "name": "strict", "key": "strict"})
    made(
        "createCustomRecipe", file=("lesson.py", RECIPE.encode()), project=P, input={"name": "lesson", "key": "lesson"}
    )
    rows = b'{"messages": [{"role": "user", "content": "hello"}]}\n'
    made("createDataset", file=("rows", rows), input={"project": P, "name": "rows", "key": "rows"})
    for name in ("first", "second"):
        made("createMonitoringRun", project=P, input={"name": name})
    made("createSystemPromptTemplate", project=P, input={"name": "kind", "template": "Be kind."})
    made("createIntegration", team="default", input={"name": "told", "provider": "webhook", "config": WEBHOOK})
    for name in ("victim", "leaver"):
        wish = {"name": name, "email": f"{name}@example.com", "teams": [{"team": "default", "role": "empty"}]}
        made("createUser", "{ user { id } }", input=wish)
    made("createUser", "{ user { id } }", input={"name": "robot", "userType": "SYSTEM", "teams": []})
    interaction = {"project": P, "messages": [{"role": "user", "content": "a"}], "completion": "b"}
    headers = {"authorization": f"Bearer {built.plane.api_key}"}
    kept = built.http.post("/api/v1/interactions", json=interaction, headers=headers).json()
    runs = asked(f'{{ monitoringRuns(project: "{P}", limit: 9, offset: 0) {{ id }} }}')["monitoringRuns"]
    built.things = {
        "completion": kept["completion_id"],
        "session": kept["session_id"],
        "run": runs[0]["id"],
        "other_run": runs[1]["id"],
        "integration": asked('{ integrations(team: "default") { id } }')["integrations"][0]["id"],
        "victim": "victim@example.com",
        "leaver": "leaver@example.com",
        "robot": "robot@system.adaptive.local",
        "system_prompt": asked(f'{{ systemPromptTemplates(project: "{P}") {{ id }} }}')["systemPromptTemplates"][0][
            "id"
        ],
        "model": asked('{ model(idOrKey: "one") { id } }')["model"]["id"],
        **asyncio.run(_work(built.plane)),
    }
    _hire(built)


def _hire(built: Laboratory) -> None:
    """People with each role."""
    headers = {"authorization": f"Bearer {built.plane.api_key}"}
    accounts = [(team, role) for team in ("default", "admin") for role in DEFAULT_ROLES]
    for team, role in (*accounts, ("elsewhere", "admin")):
        name = f"{team}-{role}".replace("_", "-")
        wish = {"name": name, "userType": "SYSTEM", "teams": [{"team": team, "role": role}], "generateApiKey": True}
        query = "mutation($input: UserCreate!) { createUser(input: $input) { generatedApiKey } }"
        answer = built.http.post("/api/graphql", json={"query": query, "variables": {"input": wish}}, headers=headers)
        built.people[team, role] = answer.json()["data"]["createUser"]["generatedApiKey"]


async def _work(plane: Plane) -> dict[str, str]:
    """A job that has ended and left a checkpoint, and an answer of a model, without waiting for either."""
    database = Database(plane.config.database_address)
    async with database.begin() as session:
        recipe = (await session.execute(select(Recipe))).scalar_one()
        project = (await session.execute(select(Project.id).where(Project.key == P))).scalar_one()
        admin = (await session.execute(select(User.id).where(User.email == ADMIN))).scalar_one()
        job = Job(
            project_id=project,
            name="done",
            status="COMPLETED",
            recipe_id=recipe.id,
            recipe_key="lesson",
            content_hash=recipe.content_hash,
            entrypoint=recipe.entrypoint,
            num_gpus=0,
            created_by=admin,
        )
        session.add(job)
        await session.flush()
        names = {"model_checkpoint_names": {"one": "checkpoints/one"}}
        checkpoint = JobArtifact(job_id=job.id, name="learn-1", kind="CHECKPOINT", details=names)
        model = (await session.execute(select(Model.id).where(Model.key == "one"))).scalar_one()
        asked = [{"role": "user", "content": "a"}]
        answer = Interaction(project_id=project, messages=asked, completion="b", model_id=model, created_by=admin)
        session.add_all((checkpoint, Completion(**rows_of(answer)[0])))
    await database.close()
    return {"job": str(job.id), "checkpoint": str(checkpoint.id)}


def may(permission: str | None, where: str, team: str, role: str) -> bool:
    """Whether a member of a team with a role there has a permission where it must hold."""
    places = {ANYWHERE: ("default", "admin", "elsewhere"), RESERVED: ("admin",)}
    return permission in DEFAULT_ROLES[role][1] and team in places.get(where, ("default", "admin"))
