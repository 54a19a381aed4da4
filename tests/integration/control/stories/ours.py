"""A user's story with `harmonia.sdk`, from the first project to the trained model that answers in it."""

from __future__ import annotations

import json
import uuid
from typing import Any

import pytest
from pydantic import BaseModel

from harmonia.errors import AuthenticationError, EntityNotFoundError, InvalidRequestError
from harmonia.sdk import Adaptive
from harmonia.sdk.inputs import UsageFilter
from harmonia.sdk.operations.graders import RemoteEnvTestOnline
from harmonia.sdk.operations.integrations import WebhookConfig
from harmonia.sdk.operations.jobs import EvaluationByproducts, Job
from tests.integration.control.stories.scene import (
    HALF_WAY,
    HUB_MODEL,
    LENGTH,
    MESSAGES,
    MODEL,
    REPORT,
    Scene,
    until,
)

GREEDY: dict[str, Any] = {"temperature": 0, "max_tokens": 12}


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
    interactions(sdk, completion_id)
    system_prompts(sdk, scene)
    figures(sdk, scene)
    integration = integrations(sdk, scene)
    datasets(sdk, scene)
    recipes(sdk, scene)
    if trains:
        training(sdk, scene)
    promotion(sdk, scene)
    evaluation(sdk, scene)
    told_of_the_end(sdk, scene, integration)
    ab_tests(sdk, scene)
    graders(sdk, scene)
    leaving(sdk, scene)


def people(sdk: Adaptive, scene: Scene) -> None:
    me = sdk.users.me()
    assert me is not None
    assert sdk.users.get(me.email) == me
    assert "project:infer" in sdk.permissions.list()
    team = sdk.teams.create(f"{scene.name}-support", "Support")
    assert team in sdk.teams.list()
    role = sdk.roles.create(f"{scene.name}-reader", ["project:read"], "Reader")
    assert sdk.roles.get(role.key) == role
    assert sdk.roles.add_permissions(role.key, ["project:infer"]).permissions == ["project:infer", "project:read"]
    assert sdk.roles.remove_permissions(role.key, ["project:infer"]).permissions == ["project:read"]
    changed = sdk.roles.update(role.key, ["project:read", "project:infer"], "Asker")
    assert changed in sdk.roles.list()
    email = f"ada@{scene.name}.example"
    ada = sdk.users.create(email, "Ada", [(team.key, role.key)])
    assert [(item.team, item.role.name) for item in ada.teams] == [(team, "Asker")]
    assert sdk.users.add_to_team(email, "default", role.key).team.key == "default"
    assert sdk.users.remove_from_team(email, "default") == ada
    assert ada in sdk.users.list()
    assert sdk.users.delete(email).id == ada.id
    assert sdk.users.get(email) is None


def a_project(sdk: Adaptive, scene: Scene) -> None:
    made = sdk.projects.create(scene.name, "Our tickets", "What customers ask")
    sdk.set_default_project(scene.name)
    assert (sdk.default_project, sdk.base_url) == (scene.name, scene.url)
    assert sdk.projects.get() == made
    assert made in sdk.projects.list()
    assert sdk.with_options(timeout_s=30).projects.get() == made
    team, role = f"{scene.name}-support", f"{scene.name}-reader"
    account = sdk.users.create_service_account(f"{scene.name}-bot", [(team, role)])
    with Adaptive(scene.url, account.generated_api_key, scene.name) as bot:
        assert bot.projects.list() == []
        assert {share.team.key for share in sdk.projects.share(scene.name, team, role).shares} == {"default", team}
        (seen,) = bot.projects.list()
        assert (seen.key, set(seen.permissions)) == (scene.name, {"project:read", "project:infer"})
        assert [share.team.key for share in sdk.projects.unshare(scene.name, team).shares] == ["default"]
        sdk.users.delete(account.user.email)
        with pytest.raises(AuthenticationError):
            bot.projects.get()


def models(sdk: Adaptive, scene: Scene) -> None:
    """The base model runs already; an adapter comes beside it."""
    name = f"{scene.name}-polite"
    adapter = sdk.models.add(str(scene.named_adapter()), "Polite", name)
    assert (adapter.is_adapter, adapter.backbone and adapter.backbone.key) == (True, MODEL)
    sdk.models.add_to_project(MODEL)
    deployed = sdk.models.deploy(MODEL, wait=True, make_default=True, placement={"compute_pools": ["default"]})
    assert (deployed.key, deployed.is_default, deployed.model.online) == (MODEL, True, "ONLINE")
    with pytest.raises(InvalidRequestError, match="from 1 to 8"):
        sdk.models.attach(name, num_draft_steps=9)
    assert sdk.models.attach(name).key == name
    assert sdk.models.wait(name, timeout_s=60).online == "ONLINE"
    assert {service.key: service.is_default for service in sdk.projects.models()} == {MODEL: True, name: False}
    assert not sdk.models.update(name, desired_online=False).desired_online
    assert sdk.models.update(name, desired_online=True).desired_online
    spare = f"{scene.name}-spare"
    imported = sdk.jobs.wait(sdk.models.add_hf_model(HUB_MODEL, "Spare", spare).id, timeout_s=100)
    assert imported.status == "COMPLETED", imported.error
    sized = sdk.models.update_compute_config(spare, {"kv_cache_len": 4096, "max_seq_len": 256})
    assert sized.compute_config is not None
    assert (sized.compute_config.kv_cache_len, sized.compute_config.max_seq_len) == (4096, 256)
    far = sdk.models.add_external(f"{scene.name} far", "claude", "sk-very-secret", "anthropic")
    assert (far.key, far.is_external, far.provider_name) == (f"{scene.name}-far", True, "ANTHROPIC")
    listed = {model.key for model in sdk.models.list({"view_all": True})}
    assert {MODEL, name, spare, far.key} <= listed
    assert sdk.models.get(spare) == sized
    assert sdk.models.get("nothing") is None


def pools(sdk: Adaptive) -> None:
    (pool,) = sdk.compute_pools.list()
    (group,) = pool.harmony_groups
    assert MODEL in {model.key for model in group.online_models}
    assert sdk.compute_pools.resize_inference_partition(pool.key, group.world_size)


def chat(sdk: Adaptive, scene: Scene) -> str:
    """The identifier of an answer."""
    session = str(uuid.uuid4())
    whole = sdk.chat.create(MESSAGES, session_id=session, labels={"shop": "berlin"}, **GREEDY)
    choice = whole.choices[0]
    assert (whole.session_id, whole.model) == (session, f"{scene.name}/{MODEL}")
    with sdk.chat.create(MESSAGES, stream=True, stream_options={"include_usage": True}, **GREEDY) as stream:
        chunks = list(stream)
    text = "".join(choice.delta.content or "" for chunk in chunks for choice in chunk.choices)
    assert text == choice.message.content
    assert whole.usage is not None and chunks[-1].usage is not None
    assert chunks[-1].usage.completion_tokens == whole.usage.completion_tokens
    polite = sdk.chat.create(MESSAGES, f"{scene.name}-polite", store=False, **GREEDY)
    assert polite.choices[0].message.content != text
    shaped = sdk.chat.create(MESSAGES, response_format=Colour, temperature=0, max_tokens=60).choices[0]
    assert shaped.finish_reason == "length" or Colour.model_validate_json(shaped.message.content or "")
    assert len(sdk.completions.create("Once", max_tokens=3, temperature=0).choices) == 1
    vector = sdk.embeddings.create("sky").data[0].embedding
    assert isinstance(vector, list)
    assert sum(x * x for x in vector) == pytest.approx(1, abs=1e-3)
    assert choice.completion_id is not None
    return choice.completion_id


def feedback(sdk: Adaptive, scene: Scene, completion_id: str) -> None:
    made = sdk.metrics.create("helpful", "bool", description="Did it help?")
    assert sdk.metrics.get("helpful") == made
    assert made.id in {metric.id for metric in sdk.metrics.list()}
    assert made.id in {metric.id for metric in sdk.metrics.list_all()}
    assert sdk.feedback.log_metric(True, completion_id, "helpful", details="yes").feedback_id
    other = sdk.chat.create(MESSAGES, f"{scene.name}-polite", **GREEDY)
    answer = other.choices[0].completion_id
    assert answer is not None
    assert sdk.feedback.log_preference("helpful", answer, completion_id, tied="good").comparison_id
    assert sdk.feedback.log_outcome(1, other.session_id, "helpful").outcome_id
    with pytest.raises(InvalidRequestError, match="helpful"):
        sdk.feedback.log_metric(7, completion_id, "helpful")
    with pytest.raises(InvalidRequestError, match=r"choices\[\]\.completion_id"):
        sdk.feedback.log_metric(True, other.id, "helpful")
    with pytest.raises(EntityNotFoundError, match=r"choices\[\]\.completion_id"):
        sdk.feedback.log_metric(True, other.session_id, "helpful")


def interactions(sdk: Adaptive, completion_id: str) -> None:
    made = sdk.interactions.create(
        MESSAGES,
        "Blue.",
        model=MODEL,
        labels={"shop": "paris"},
        feedbacks=[{"metric": "helpful", "value": True}],
        created_at="2026-01-01T00:00:00Z",
    )
    assert len(made.feedback_ids) == 1
    found = sdk.interactions.get(completion_id)
    assert found is not None
    assert [score.value for score in found.direct_scores] == [1.0]
    assert len(found.comparison_scores) == 1
    paris = sdk.interactions.list(filters={"labels": [{"key": "shop", "value": ["paris"]}]})
    assert [node.id for node in paris.nodes] == [made.completion_id]
    page = sdk.interactions.list(page={"first": 1}, order=[{"field": "created_at", "order": "ASC"}])
    assert [node.id for node in page.nodes] == [made.completion_id]
    assert page.page_info.has_next_page
    groups = sdk.interactions.list_grouped("model").nodes
    assert (sum(group.count for group in groups), len(groups)) == (page.total_count, 2)


def system_prompts(sdk: Adaptive, scene: Scene) -> None:
    name = f"{scene.name}-polite"
    prompt = sdk.system_prompts.create("manners", "You answer in {{ language }}.")
    assert sdk.system_prompts.list() == [prompt]
    assert sdk.system_prompts.use(name, prompt.id).key == name
    with pytest.raises(InvalidRequestError, match="'language'"):
        sdk.chat.create(MESSAGES, name, **GREEDY)
    answer = sdk.chat.create(MESSAGES, name, system_prompt_args={"language": "French"}, **GREEDY).choices[0]
    kept = sdk.interactions.get(str(answer.completion_id))
    assert kept is not None
    assert kept.chat_messages[0].content == "You answer in French."
    sdk.system_prompts.use(name, None)
    assert sdk.system_prompts.delete(prompt.id)


def figures(sdk: Adaptive, scene: Scene) -> None:
    """Of the chats so far, which are all of today."""
    mine: UsageFilter = {"projects": [scene.name], "since": "now - 1 hour"}
    usage = sdk.usage.overall("day", {**mine, "timezone": "Europe/Paris"})
    used = {item.model.key: item for item in usage.by_model}
    assert set(used) == {MODEL, f"{scene.name}-polite"}
    assert usage.total == usage.adaptive_models and usage.external_models.total_tokens == 0
    assert usage.total.total_tokens == sum(item.total_tokens for item in used.values()) > 0
    assert sum(then.interactions for then in used[MODEL].timeseries) == used[MODEL].interactions > 0
    (project,) = sdk.usage.by_project(filter=mine)
    (me,) = sdk.usage.by_user(filter=mine)
    assert project.total_tokens == me.total_tokens == usage.total.total_tokens
    services = {item.model_service.key for item in sdk.usage.by_service(mine) if item.model_service is not None}
    assert services == set(used)
    (series,) = sdk.metrics.timeseries("latency", "hour", {"since": "now - 1 hour"})
    assert sum(series.count) == usage.total.interactions
    assert [value is None for value in series.values] == [count == 0 for count in series.count]
    by_model = sdk.metrics.timeseries("latency", chart={"by_model": True, "aggregation": "COUNT"})
    assert {item.model.key: sum(item.count) for item in by_model if item.model is not None} == {
        key: item.interactions for key, item in used.items()
    }
    assert sdk.metrics.trend("latency") is None  # nothing before
    activity = sdk.projects.activity(since="now - 1 hour")
    assert activity is not None
    assert (activity.interactions.value, activity.scores.value) == (usage.total.interactions, 2)


def integrations(sdk: Adaptive, scene: Scene) -> str:
    """The identifier of one that waits for the end of jobs."""
    assert {provider.name for provider in sdk.integrations.list_providers()} >= {"slack", "smtp", "webhook", "github"}
    assert sdk.integrations.get_provider("webhook") in sdk.integrations.list_providers()
    hook = {"url": scene.listener.url, "method": "POST", "headers": {}}
    wanted = [{"topic_pattern": f"*:{scene.name}:job:*", "scope": "TEAM"}]
    made = sdk.integrations.create("default", "Hook", "webhook", hook, wanted, "multishot")
    assert isinstance(made.config.connection, WebhookConfig)
    changed = sdk.integrations.update(made.id, name=f"Hook of {scene.name}")
    assert (changed.id, changed.name) == (made.id, f"Hook of {scene.name}")
    assert sdk.integrations.get(made.id) == changed
    assert changed in sdk.integrations.list("default")
    job = {
        "job_id": str(uuid.uuid4()),
        "job_name": "rehearsal",
        "job_status": "DONE",
        "job_progress": 1.0,
        "job_started_at": "2026-01-01T00:00:00Z",
        "project_id": str(uuid.uuid4()),
        "job_input": {},
        "job_outputs": [],
    }
    topic = f"project:{scene.name}:job:completed"
    assert sdk.integrations.test_notification(topic, {"team": "default"}, {"job_update": job}).event_id
    assert json.loads(scene.listener.next()[2])["payload"]["jobName"] == "rehearsal"
    return made.id


def datasets(sdk: Adaptive, scene: Scene) -> None:
    small = scene.questions("questions")
    made = sdk.datasets.upload(small, "questions", "Questions")
    assert (made.key, made.records, made.kind) == ("questions", 8, "PROMPT_COMPLETION")
    assert sdk.datasets.download("questions") == small.read_bytes()
    sdk.datasets.download("questions", scene.folder / "rows.jsonl", format="recipe")
    assert len((scene.folder / "rows.jsonl").read_text().splitlines()) == 8
    sessions: list[str | None] = []
    many = scene.questions("many", 3000, 2000)
    sdk.datasets.upload(many, "many", on_progress=lambda progress: sessions.append(progress.session_id))  # in parts
    assert {dataset.key for dataset in sdk.datasets.list()} == {"questions", "many"}
    assert sdk.datasets.delete("many")
    assert sdk.datasets.get("many") is None
    sdk.datasets.abort_upload(_given_up(sdk, scene))
    bad = scene.written("bad.jsonl", small.read_text().splitlines()[0] + "\n{nonsense\n")
    with pytest.raises(InvalidRequestError, match="line 2"):
        sdk.datasets.upload(bad, "bad")


def _given_up(sdk: Adaptive, scene: Scene) -> str:
    """The session of an upload that was left after its first part."""
    sessions: list[str | None] = []

    def leave(progress: Any) -> None:
        sessions.append(progress.session_id)
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        sdk.datasets.upload(scene.folder / "many.jsonl", "again", on_progress=leave)
    assert sessions[0] is not None
    return sessions[0]


def recipes(sdk: Adaptive, scene: Scene) -> None:
    file = scene.written("report.py", REPORT)
    made = sdk.recipes.upload(file, labels={"kind": "test"})
    assert (made.key, made.json_schema["required"]) == ("report", ["value"])
    assert sdk.recipes.update("report", description="Reports.").description == "Reports."
    file.write_text(REPORT.replace("as it was asked for", "because"))
    again = sdk.recipes.upsert(file)
    assert (again.id, again.content_hash != made.content_hash) == (made.id, True)
    assert {"sft", "report"} <= {recipe.key for recipe in sdk.recipes.list()}
    assert sdk.recipes.list(labels={"kind": ["test"]}) == [again]
    assert sdk.recipes.parse_schema(file) == again.json_schema
    copy = sdk.recipes.duplicate("report", "Other report")
    assert (copy.key, copy.content_hash) == ("other-report", again.content_hash)
    patched = sdk.recipes.patch("other-report", {"notes.txt": scene.written("notes.txt", "none")})
    assert patched.content_hash != again.content_hash
    assert sdk.recipes.delete("other-report")


def training(sdk: Adaptive, scene: Scene) -> None:
    """The built-in recipe trains an adapter, which then answers."""
    result = f"{scene.name}-trained"
    with pytest.raises(InvalidRequestError, match="dataset: missing"):
        sdk.jobs.run("sft", 1, {"model_to_train": MODEL, "output_model_key": result})
    seen: list[Job] = []
    job = sdk.jobs.run("sft", 1, scene.lesson("questions", result), "Lesson", compute_pool="default")
    done = sdk.jobs.wait(job, on_progress=seen.append, timeout_s=100)
    assert (done.status, done.progress, seen[-1]) == ("COMPLETED", 1.0, done), sdk.jobs.logs(job.id)
    assert {artifact.kind: artifact.uri for artifact in done.artifacts}["MODEL"] == f"model_registry://{result}"
    assert sdk.models.deploy(result, wait=True).model.is_adapter
    assert sdk.chat.create(MESSAGES, result, **GREEDY).model == f"{scene.name}/{result}"
    assert sdk.models.detach(result)


def promotion(sdk: Adaptive, scene: Scene) -> None:
    """A checkpoint becomes a model, whatever becomes of its job."""
    sdk.recipes.upload(scene.written("half_way.py", HALF_WAY))
    job = sdk.jobs.run("half-way", 1, {"model": MODEL}, "Lesson that is not over")
    (checkpoint,) = until(lambda: sdk.artifacts.list(filter={"job_id": job.id, "kinds": ["CHECKPOINT"]}), bool)
    found = sdk.jobs.search("not over")
    assert [item.id for item in found.jobs] == [job.id]
    key = f"{scene.name}-half-way"
    promoted = sdk.jobs.wait(sdk.artifacts.promote(checkpoint.id, {MODEL: key}), timeout_s=100)
    assert promoted.status == "COMPLETED", promoted.error
    sdk.jobs.cancel(job.id)
    assert sdk.jobs.delete(job.id)
    model = sdk.models.get(key)
    assert model is not None
    assert model.is_adapter
    assert sdk.models.delete(key)
    assert sdk.recipes.delete("half-way")


def evaluation(sdk: Adaptive, scene: Scene) -> None:
    job = sdk.jobs.run("report", 0, {"value": 0.5}, "First")
    assert sdk.jobs.update(job.id, "Report").name == "Report"
    done = sdk.jobs.wait(job.id, timeout_s=60)
    assert done.status == "COMPLETED" and "reported" in sdk.jobs.logs(job.id), done.error
    (artifact,) = done.artifacts
    assert isinstance(artifact.byproducts, EvaluationByproducts)
    (result,) = artifact.byproducts.eval_results
    assert (result.model_service.key, result.mean) == (MODEL, 0.5)
    assert json.loads(sdk.artifacts.download(artifact.id))["grades"][0]["value"] == 0.5
    waiting = sdk.jobs.run("report", 0, {"value": 1, "seconds": 600})
    assert sdk.jobs.cancel(waiting.id).status == "CANCELED"
    page = sdk.jobs.list(filter={"status": ["CANCELED"]})
    assert [found.id for found in page.nodes] == [waiting.id]
    assert sdk.jobs.delete(waiting.id)
    assert sdk.jobs.get(waiting.id) is None
    assert sdk.recipes.delete("report")
    assert sdk.recipes.get("report") is None


def told_of_the_end(sdk: Adaptive, scene: Scene, integration: str) -> None:
    wanted = (f"project:{scene.name}:job:completed", "Report")
    seen = None
    while seen != wanted:
        message = json.loads(scene.listener.next()[2])
        seen = (message["topic"], message["payload"]["jobName"])
    assert sdk.integrations.delete(integration)
    assert sdk.integrations.get(integration) is None


def ab_tests(sdk: Adaptive, scene: Scene) -> None:
    key, polite = f"{scene.name}-which", f"{scene.name}-polite"
    sdk.metrics.create("stars")
    made = sdk.ab_tests.create(key, "stars", [MODEL, polite], traffic_split=1.0)
    assert [test.key for test in sdk.ab_tests.list(active=True)] == [key]
    answered = {MODEL: 0, polite: 0}
    while not all(answered.values()):
        answer = sdk.chat.create(MESSAGES, max_tokens=1)
        completion_id = answer.choices[0].completion_id
        assert completion_id is not None
        sdk.feedback.log_metric(3, completion_id, "stars")
        answered[answer.model.partition("/")[2]] += 1
    found = sdk.ab_tests.get(key)
    assert found is not None
    assert (found.id, found.scores) == (made.id, sum(answered.values()))
    assert {variant.variant.key: variant.scores for variant in found.report.variants} == answered
    sdk.ab_tests.cancel(key)
    assert sdk.ab_tests.list(active=True) == []


def graders(sdk: Adaptive, scene: Scene) -> None:
    judge = sdk.graders.create.binary_judge(
        key="true",
        criteria="It is true.",
        judge_model=MODEL,
        examples=[{"input": MESSAGES, "output": "Blue.", "passes": True, "reasoning": "It is."}],
    )
    relevant = sdk.graders.create.prebuilt_judge(key="relevant", type="ANSWER_RELEVANCY", judge_model=MODEL)
    assert sdk.graders.create.validate_function(LENGTH).valid
    length = sdk.graders.create.function(key="length", fn=LENGTH, description="How long it is")
    (tried,) = sdk.graders.try_out("length", [[*MESSAGES, {"role": "assistant", "content": "Blue."}]])
    assert tried.value == len("Blue.")
    (graded,) = sdk.graders.grade("length", [sdk.interactions.list(filters={"completion": "Blue."}).nodes[0].id])
    assert graded.value == len("Blue.")
    custom = sdk.graders.create.custom(key="inside", description="In a recipe")
    assert isinstance(sdk.graders.test_external_endpoint(scene.rewards), RemoteEnvTestOnline)
    far = sdk.graders.create.external_endpoint(key="outside", url=scene.rewards)
    made = {grader.id for grader in (judge, relevant, length, custom, far)}
    assert {grader.id for grader in sdk.graders.list()} == made
    assert sdk.graders.lock("length", True).locked
    assert not sdk.graders.lock("length", False).locked
    sdk.graders.delete("inside")
    assert sdk.graders.get("inside") is None
    assert sdk.graders.get("true") == judge


def leaving(sdk: Adaptive, scene: Scene) -> None:
    """The models make room for those of others."""
    assert sdk.models.terminate(f"{scene.name}-polite")
    for key in (f"{scene.name}-polite", MODEL):
        assert sdk.models.detach(key)
    assert sdk.projects.models() == []
    spare = f"{scene.name}-spare"
    sdk.models.delete(spare)
    assert sdk.models.get(spare) is None
