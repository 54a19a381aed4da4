"""A user's story with the published SDK, from the first project to the trained model that answers in it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from adaptive_sdk import Adaptive
from adaptive_sdk.error_handling import AdaptiveEntityNotFoundError
from adaptive_sdk.graphql_client import (
    AddModelInput,
    ConnectionConfigInputWebhook,
    DeliveryScopeInput,
    DeployModelInput,
    GraderUpdateInput,
    NotificationPayload,
    RemoteEnvCreate,
    RemoveModelFromProjectInput,
    SubscriptionInput,
)
from adaptive_sdk.graphql_client.exceptions import GraphQLClientGraphQLMultiError
from adaptive_sdk.graphql_client.input_types import JobUpdatePayload
from adaptive_sdk.monitoring import Table, init
from pydantic import BaseModel, ValidationError

from tests.integration.control.stories.scene import HUB_MODEL, LENGTH, MESSAGES, MODEL, REPORT, Scene, until

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}
EXCUSED = {
    ".project_key": "asks nobody",
    ".optional_project_key": "asks nobody",
    "set_default_use_case": "the old name of set_default_project",
    "jobs.list": "cannot read a page with a job on it, whatever the server sends",
}


class Colour(BaseModel):
    """What an answer may be made to look like."""

    blue: bool


def tell(sdk: Adaptive, scene: Scene, trains: bool = True) -> None:
    """The whole story. sdk: either client, `Surface.of` makes them alike; trains: a model, and asks it."""
    people(sdk, scene)
    a_project(sdk, scene)
    models(sdk, scene)
    pools(sdk)
    completion_id = chat(sdk, scene)
    feedback(sdk, scene, completion_id)
    interactions(sdk, scene, completion_id)
    integration = integrations(sdk, scene)
    datasets(sdk, scene)
    recipes(sdk, scene)
    if trains:
        training(sdk, scene)
    evaluation(sdk, scene)
    told_of_the_end(sdk, scene, integration)
    ab_tests(sdk, scene)
    graders(sdk, scene)
    monitoring(sdk, scene)
    leaving(sdk, scene)


def people(sdk: Adaptive, scene: Scene) -> None:
    assert (sdk.users.me().email, "project:infer" in sdk.permissions.list()) == ("admin@localhost", True)
    team = sdk.teams.create(f"{scene.name}-support", "Support")
    role = sdk.roles.create(f"{scene.name}-reader", ["project:read", "project:infer"], "Reader")
    assert team.key in {found.key for found in sdk.teams.list()}
    assert {found.key: found.permissions for found in sdk.roles.list()}[role.key] == ["project:infer", "project:read"]
    email = f"ada@{scene.name}.example"
    ada = sdk.users.create(email, "Ada", [(team.key, role.key)])
    assert [(item.team.key, item.role.key) for item in ada.teams] == [(team.key, role.key)]
    assert sdk.users.add_to_team(email, "default", role.key).team.key == "default"
    assert [item.team.key for item in sdk.users.remove_from_team(email, "default").teams] == [team.key]
    assert email in {user.email for user in sdk.users.list()}
    sdk.users.delete(email)
    assert email not in {user.email for user in sdk.users.list()}


def a_project(sdk: Adaptive, scene: Scene) -> None:
    team, role = f"{scene.name}-support", f"{scene.name}-reader"
    made = sdk.projects.create(scene.name, "Our tickets", "What customers ask")
    sdk.set_default_project(scene.name)
    assert sdk.default_project == scene.name
    assert made.id in {project.id for project in sdk.projects.list()}
    assert (sdk.projects.get().id, made.description) == (made.id, "What customers ask")
    account = sdk.users.create_service_account(f"{scene.name}-bot", [(team, role)])
    bot = Adaptive(base_url=scene.url, api_key=account.api_key)
    assert bot.projects.list() == []
    shared = sdk.projects.share(scene.name, team, role)
    assert {(share.team.key, share.is_owner) for share in shared.shares} == {("default", True), (team, False)}
    (seen,) = bot.projects.list()
    assert (seen.key, set(seen.permissions)) == (scene.name, {"project:read", "project:infer"})
    assert [share.team.key for share in sdk.projects.unshare(scene.name, team).shares] == ["default"]
    assert bot.projects.get(scene.name) is None
    bot.close()


def models(sdk: Adaptive, scene: Scene) -> None:
    """The base model runs already; an adapter comes beside it."""
    name = f"{scene.name}-polite"
    add = sdk._gql_client.add_model  # no resource has it
    adapter = add(AddModelInput(path=str(scene.named_adapter()), name="Polite", key=name)).add_model
    assert (adapter.is_adapter, adapter.backbone.key) == (True, MODEL)
    if is_synchronous(sdk):
        assert sdk.models.add_to_project(MODEL)
        with pytest.raises(GraphQLClientGraphQLMultiError, match="from 1 to 8"):
            sdk.models.attach(name, num_draft_steps=9)
        assert sdk.models.attach(name, wait=True, placement={"compute_pools": ["default"]}).key == name
    for key in (MODEL, name):
        online = deployed(sdk, scene, key)
        assert (online.key, online.desired_online, online.model.online.value) == (key, True, "ONLINE")
    assert sdk.models.update(MODEL, is_default=True).is_default
    assert {service.key: service.is_default for service in sdk.projects.get().model_services} == {
        MODEL: True,
        name: False,
    }
    assert not sdk.models.update(name, desired_online=False).desired_online
    assert sdk.models.update(name, desired_online=True, placement={"compute_pools": ["default"]}).desired_online
    spare = f"{scene.name}-spare"
    imported = ended(sdk, sdk.models.add_hf_model(HUB_MODEL, "Spare", spare, "hf_none").id)
    assert imported.status.value == "COMPLETED", imported.error
    sized = sdk.models.update_compute_config(spare, {"kv_cache_len": 4096, "max_seq_len": 256})
    assert (sized.compute_config.kv_cache_len, sized.compute_config.max_seq_len) == (4096, 256)
    far = sdk.models.add_external(f"{scene.name} far", "gpt-5", "sk-very-secret", "open_ai")
    assert (far.key, far.is_external, far.provider_name.value) == (f"{scene.name}-far", True, "OPEN_AI")
    listed = {model.key: model for model in sdk.models.list({"view_all": True})}
    assert {MODEL, name, spare, far.key} <= listed.keys()
    assert sdk.models.get(spare).compute_config == sized.compute_config
    assert sdk.models.get("nothing") is None


def pools(sdk: Adaptive) -> None:
    (pool,) = sdk.compute_pools.list()
    (group,) = pool.harmony_groups
    assert MODEL in {model.key for model in group.online_models}
    sdk.compute_pools.resize_inference_partition(pool.key, group.world_size)
    (same,) = sdk._gql_client.list_harmony_groups().harmony_groups
    assert same.world_size == group.world_size


def chat(sdk: Adaptive, scene: Scene) -> str:
    """The identifier of an answer."""
    session = uuid.uuid4()
    whole = sdk.chat.create(MESSAGES, session_id=session, labels={"shop": "berlin"}, **GREEDY)
    assert (whole.session_id, whole.choices[0].model) == (session, f"{scene.name}/{MODEL}")
    chunks = list(sdk.chat.create(MESSAGES, stream=True, stream_include_usage=True, **GREEDY))
    text = "".join(choice.delta.content for chunk in chunks for choice in chunk.choices)
    assert (text, chunks[-1].usage) == (whole.choices[0].message.content, whole.usage)
    polite = sdk.chat.create(MESSAGES, model=f"{scene.name}-polite", store=False, **GREEDY)
    assert polite.choices[0].message.content != text
    shaped = sdk.chat.create(MESSAGES, response_format=Colour, temperature=0, max_tokens=60).choices[0]
    assert shaped.finish_reason == "length" or Colour.model_validate_json(shaped.message.content)
    vector = sdk.embeddings.create("sky").data[0].embedding
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)
    return str(whole.choices[0].completion_id)


def feedback(sdk: Adaptive, scene: Scene, completion_id: str) -> None:
    made = sdk.feedback.register_key(scene.name, "helpful", "bool", name="Helpful", description="Did it help?")
    assert sdk.feedback.get_key(scene.name, "helpful").id == made.id
    assert sdk._gql_client.describe_metric_admin("helpful", scene.name).metric.projects[0].key == scene.name
    assert made.id in {metric.id for metric in sdk.feedback.list_keys()}
    assert sdk.feedback.log_metric(True, completion_id, "helpful", details="yes").feedback_id
    other = sdk.chat.create(MESSAGES, model=f"{scene.name}-polite", **GREEDY).choices[0]
    assert sdk.feedback.log_preference("helpful", other.completion_id, completion_id).comparison_id
    with pytest.raises(GraphQLClientGraphQLMultiError, match="helpful"):
        sdk.feedback.log_metric(7, completion_id, "helpful")


def interactions(sdk: Adaptive, scene: Scene, completion_id: str) -> None:
    made = sdk.interactions.create(
        MESSAGES,
        "Blue.",
        model=MODEL,
        labels={"shop": "paris"},
        feedbacks=[{"feedback_key": "helpful", "value": True}],
    )
    assert len(made.feedback_ids) == 1
    found = sdk.interactions.get(completion_id)
    assert [score.value for score in found.direct_scores] == [1.0]
    assert (len(found.comparison_scores), found.chat_messages[0].content) == (1, MESSAGES[0]["content"])
    paris = sdk.interactions.list(filters={"labels": [{"key": "shop", "value": ["paris"]}]})
    assert [node.id for node in paris.nodes] == [str(made.completion_id)]
    page = sdk.interactions.list(page={"first": 1}, order=[{"field": "created_at", "order": "DESC"}])
    assert [node.id for node in page.nodes] == [str(made.completion_id)]
    assert page.page_info.has_next_page and page.total_count > 2
    groups = sdk.interactions.list(group_by="model").nodes
    assert sum(group.count for group in groups) == page.total_count and len(groups) == 2


def integrations(sdk: Adaptive, scene: Scene) -> str:
    """The identifier of one that waits for the end of jobs."""
    assert {provider.name for provider in sdk.integrations.list_providers()} >= {"slack", "smtp", "webhook", "github"}
    assert sdk.integrations.get_provider("webhook").description
    hook = ConnectionConfigInputWebhook(url=scene.listener.url, method="POST", headers={})
    wanted = SubscriptionInput(topicPattern=f"*:{scene.name}:job:*", scope=DeliveryScopeInput.TEAM)
    made = sdk.integrations.create("default", "Hook", "webhook", hook, [wanted], "multishot")
    assert sdk.integrations.get(made.id).config.connection.url == scene.listener.url
    assert made.id in {found.id for found in sdk.integrations.list("default")}
    assert sdk.integrations.update(made.id, name=f"Hook of {scene.name}").name == f"Hook of {scene.name}"
    update = JobUpdatePayload(
        jobId=str(uuid.uuid4()),
        jobName="rehearsal",
        jobStatus="DONE",
        jobProgress=1.0,
        jobStartedAt="2026-01-01T00:00:00Z",
        projectId=str(uuid.uuid4()),
        jobInput={},
        jobOutputs=[],
    )
    payload = NotificationPayload(jobUpdate=update)
    sdk.integrations.test_notification(f"project:{scene.name}:job:completed", payload, scope_team="default")
    assert json.loads(scene.listener.next()[2])["payload"]["jobName"] == "rehearsal"
    return str(made.id)


def datasets(sdk: Adaptive, scene: Scene) -> None:
    small = scene.questions("questions")
    made = sdk.datasets.upload(str(small), "questions", "Questions")
    assert (made.key, made.records, made.kind.value) == ("questions", 8, "PROMPT_COMPLETION")
    sdk.datasets.download("questions", str(scene.folder / "back.jsonl"))
    assert (scene.folder / "back.jsonl").read_bytes() == small.read_bytes()
    sdk.datasets.download("questions", str(scene.folder / "rows.jsonl"), format="recipe")
    assert len((scene.folder / "rows.jsonl").read_text().splitlines()) == 8
    large = sdk.datasets.upload(str(scene.questions("many", 3000, 2000)), "many")  # in parts
    assert large.records == 3000
    assert {dataset.key for dataset in sdk.datasets.list()} == {"questions", "many"}
    assert sdk.datasets.delete("many")
    assert sdk.datasets.get("many") is None
    with pytest.raises(GraphQLClientGraphQLMultiError, match="line 2"):
        sdk.datasets.upload(str(scene.written("bad.jsonl", small.read_text().splitlines()[0] + "\n{nonsense\n")), "bad")


def recipes(sdk: Adaptive, scene: Scene) -> None:
    file = scene.written("report.py", REPORT)
    labels: Any = {"kind": "test"} if is_synchronous(sdk) else [("kind", "test")]
    made = sdk.recipes.upload(str(file), labels=labels)
    assert (made.key, made.builtin, made.json_schema["required"]) == ("report", False, ["value"])
    assert 0 <= sdk.recipes.generate_sample_input("report")["value"] <= 1
    assert sdk.recipes.update("report", description="Reports.").description == "Reports."
    file.write_text(REPORT.replace("as it was asked for", "because"))
    again = sdk.recipes.upsert(str(file))
    assert (again.id, again.content_hash != made.content_hash) == (made.id, True)
    assert {"sft", "report"} <= {recipe.key for recipe in sdk.recipes.list()}


def ended(sdk: Adaptive, job_id: str) -> Any:
    return until(lambda: sdk.jobs.get(job_id), lambda job: job.status.value not in ("PENDING", "RUNNING"))


def training(sdk: Adaptive, scene: Scene) -> None:
    """The built-in recipe trains an adapter, which then answers."""
    result = f"{scene.name}-trained"
    with pytest.raises(GraphQLClientGraphQLMultiError, match="dataset: missing"):
        sdk.jobs.run("sft", 1, {"model_to_train": MODEL, "output_model_key": result})
    job = sdk.jobs.run("sft", 1, scene.lesson("questions", result), "Lesson", compute_pool="default")
    done = ended(sdk, job.id)
    assert (done.status.value, done.progress) == ("COMPLETED", 1.0), done.error
    assert done.stages[0].info.processed_num_samples == done.stages[0].info.total_num_samples
    assert {artifact.kind.value: artifact.uri for artifact in done.artifacts}["MODEL"] == f"model_registry://{result}"
    trained = deployed(sdk, scene, result)
    assert (trained.model.online.value, trained.model.is_adapter) == ("ONLINE", True)
    assert sdk.chat.create(MESSAGES, model=result, **GREEDY).choices[0].model == f"{scene.name}/{result}"
    assert sdk._gql_client.describe_model_admin(result).model.projects[0].key == scene.name
    detach(sdk, scene, result)


def told_of_the_end(sdk: Adaptive, scene: Scene, integration: str) -> None:
    wanted = (f"project:{scene.name}:job:completed", "Report")
    seen = None
    while seen != wanted:
        message = json.loads(scene.listener.next()[2])
        assert message["topic"].startswith(f"project:{scene.name}:job:")
        seen = (message["topic"], message["payload"]["jobName"])
    assert sdk.integrations.delete(integration)
    assert sdk.integrations.get(integration) is None


def evaluation(sdk: Adaptive, scene: Scene) -> None:
    job = sdk.jobs.run("report", 0, {"value": 0.5}, "First")
    assert sdk.jobs.rename(job.id, "Report").name == "Report"
    done = ended(sdk, job.id)
    assert done.status.value == "COMPLETED", done.error
    (result,) = done.eval_results
    assert (result.model_key, [score.mean for score in result.scores]) == (MODEL, [0.5])
    (artifact,) = done.artifacts
    sdk.artifacts.download(artifact.id, str(scene.folder / "worth.jsonl"))
    assert json.loads((scene.folder / "worth.jsonl").read_text())["grades"][0]["value"] == 0.5
    waiting = sdk.jobs.run("report", 0, {"value": 1, "seconds": 600})
    assert sdk.jobs.cancel(waiting.id).status.value == "CANCELED"
    with pytest.raises(ValidationError):
        sdk.jobs.list()
    assert sdk.jobs.delete(waiting.id)
    assert sdk.jobs.get(waiting.id) is None
    assert sdk.recipes.delete("report")
    assert sdk.recipes.get("report") is None


def ab_tests(sdk: Adaptive, scene: Scene) -> None:
    key, polite = f"{scene.name}-which", f"{scene.name}-polite"
    sdk.feedback.register_key(scene.name, "stars", "scalar")
    made = sdk.ab_tests.create(key, "stars", [MODEL, polite], traffic_split=1.0)
    assert [test.key for test in sdk.ab_tests.list(active=True)] == [key]
    answered = {MODEL: 0, polite: 0}
    while not all(answered.values()):
        choice = sdk.chat.create(MESSAGES, max_tokens=1).choices[0]
        sdk.feedback.log_metric(3, choice.completion_id, "stars")
        answered[choice.model.partition("/")[2]] += 1
    found = sdk.ab_tests.get(key)
    assert (found.id, found.scores) == (made.id, sum(answered.values()))
    assert {variant.variant.key: variant.scores for variant in found.report.variants} == answered
    sdk.ab_tests.cancel(key)
    assert sdk.ab_tests.list(active=True) == []
    assert sdk.ab_tests.get(key).status.value == "CANCELLED"


def graders(sdk: Adaptive, scene: Scene) -> None:
    example: Any = {"input": MESSAGES, "output": "Blue.", "passes": True, "reasoning": "It is."}
    judge = sdk.graders.create.binary_judge(key="true", criteria="It is true.", judge_model=MODEL, examples=[example])
    faithful = sdk.graders.create.prebuilt_judge(key="faithful", type="FAITHFULNESS", judge_model=MODEL)
    length = sdk.graders.create.function(key="length", fn=LENGTH, description="How long it is")
    custom = sdk.graders.create.custom(key="inside", description="In a recipe")
    assert sdk.graders.test_external_endpoint(scene.rewards).name == "Lengths"
    far = sdk.graders.create.external_endpoint(key="outside", url=scene.rewards)
    assert {grader.id for grader in sdk.graders.list()} == {each.id for each in (judge, faithful, length, custom, far)}
    assert far.grader_config.version == "1.2"
    assert judge.metric.kind.value == ("BOOL" if is_synchronous(sdk) else "SCALAR")
    with pytest.raises(ValueError, match="definition"):
        sdk.graders.create.function(key="wrong", fn="def grade(thread): return 1.0")
    renamed = sdk._gql_client.update_grader(scene.name, "length", GraderUpdateInput(name="Length")).update_grader
    assert (renamed.id, renamed.name) == (length.id, "Length")
    assert sdk.graders.lock(grader_key="length", locked=True).locked
    assert not sdk.graders.lock(grader_key="length", locked=False).locked
    assert sdk.graders.delete(grader_key="inside")
    with pytest.raises(AdaptiveEntityNotFoundError):
        sdk.graders.get(grader_key="inside")
    assert sdk.graders.get(grader_key="length").grader_config.source_code == LENGTH
    envs = sdk._gql_client
    env = envs.add_remote_env(RemoteEnvCreate(url=scene.rewards, key=f"{scene.name}-env")).add_remote_env
    assert env.id in {found.id for found in envs.list_remote_envs().remote_envs}
    envs.remove_remote_env(env.id)
    assert env.id not in {found.id for found in envs.list_remote_envs().remote_envs}


def monitoring(sdk: Adaptive, scene: Scene) -> None:
    with init(scene.name, "curve", api_url=scene.url, api_key=scene.api_key, config={"lr": 0.1}) as run:
        run.log({"loss": 0.5}, step=1)
        run.log_table("samples", Table(["prompt", "score"], [["a", 0.5]]), step=1)
        run.log_categorical("lengths", {"short": 3.0}, step=1)


def leaving(sdk: Adaptive, scene: Scene) -> None:
    """The models make room for those of others."""
    assert sdk.models.terminate(f"{scene.name}-polite")
    for key in (f"{scene.name}-polite", MODEL):
        detach(sdk, scene, key)
    assert sdk.projects.get().model_services == []


def is_synchronous(sdk: Adaptive) -> bool:
    """The asynchronous client lacks some methods, and does other things in some."""
    return hasattr(sdk.models, "deploy")


def deployed(sdk: Adaptive, scene: Scene, key: str) -> Any:
    """The model, online in the project. The asynchronous client has no method for it."""
    if is_synchronous(sdk):
        return sdk.models.deploy(key, wait=True)
    wanted = DeployModelInput(project=scene.name, model=key, wait=True)
    return sdk._gql_client.deploy_model(wanted).deploy_model.model_service


def detach(sdk: Adaptive, scene: Scene, key: str) -> None:
    """Take the model away. The asynchronous client's method does nothing."""
    if is_synchronous(sdk):
        assert sdk.models.detach(key, scene.name)
    else:
        sdk.models.detach(key)
        wanted = RemoveModelFromProjectInput(project=scene.name, model=key)
        assert sdk._gql_client.remove_model_from_project(wanted).remove_model_from_project
