"""A recipe that grades with graders of every kind, on `harmonia up` with a tiny model and a server that scores."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from harmonia.sdk import Adaptive
from tests.integration.control.rewards import REFUSED, RewardServer
from tests.integration.control.starting import started
from tests.integration.control.test_judges import PASS, Provider

pytestmark = pytest.mark.timeout(300)

P = "tickets"
RECIPE = """
import asyncio
import json

from harmonia.client import StringThread
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from harmonia.graders import CombinedGrader, Grader

class Config(InputConfig):
    graders: list[Grader]
    questions: list[str] = ["Hello"]

async def polite(thread: StringThread) -> float:
    return float("please" in thread.last_content())

async def told(grader, thread) -> dict:
    try:
        grade = await grader.grade(thread)
    except Exception as error:
        return {"error": type(error).__name__, "says": str(error)}
    return {"value": grade.value, "reasoning": grade.reasoning}

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    graders = [await each.load(ctx, max_tokens=48, custom={"polite": polite}) for each in config.graders]
    threads = [
        StringThread([("user", question), ("assistant", "Yes, please")], {"place": ctx.working_dir, "number": number})
        for number, question in enumerate(config.questions)
    ]
    for grader in graders:
        found = await asyncio.gather(*(told(grader, thread) for thread in threads))
        logs = {key: value for key, value in grader.get_logs().items() if isinstance(value, int | float)}
        print("GRADED", json.dumps([grader.grader_key, found, logs]), flush=True)
    scored = [each for each in graders if each.grader_key in ("length", "polite", "far", "outside")]
    if len(scored) == 4:
        print("TOGETHER", await CombinedGrader("all", scored).score_float_value(threads[0]), flush=True)
"""


@pytest.fixture(scope="module")
def rewards() -> Iterator[RewardServer]:
    server = RewardServer()
    yield server
    server.close()


@pytest.fixture(scope="module")
def provider() -> Iterator[Provider]:
    provider = Provider()
    yield provider
    provider.close()


@pytest.fixture(scope="module")
def sdk(
    rewards: RewardServer, provider: Provider, tiny: Path, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Adaptive]:
    """The admin of a project with a grader of every kind, and the recipe."""
    allowed = {f"ADAPTIVE_{what}__ALLOW_PRIVATE": "true" for what in ("GRADERS", "EXTERNAL_MODELS")}
    folder = tmp_path_factory.mktemp("up")
    (folder / "grades.py").write_text(RECIPE)
    roomy = shutil.copytree(tiny, folder / "roomy")  # prompts of judges are long
    config = json.loads((roomy / "config.json").read_text())
    (roomy / "config.json").write_text(json.dumps({**config, "max_position_embeddings": 4096}))
    with started(folder / "data", **allowed) as up, Adaptive(up.url, up.api_key, P, timeout_s=60) as admin:
        admin.projects.create(P)
        admin.models.add(str(roomy), "Tiny", "tiny")
        admin.models.add_external("Judge", "judge-1", "sk-secret", "open_ai", endpoint=provider.url)
        make = admin.graders.create
        make.function(key="length", fn="async def grade(thread): return float(len(thread.last_content()))")
        make.custom(key="polite", description="Says please")
        make.custom(key="unknown", description="Of another recipe")
        make.external_endpoint(key="far", url=rewards.url)
        make.binary_judge(key="outside", criteria="It is kind.", judge_model="judge")
        example = {"input": [{"role": "user", "content": "Hi"}], "output": "No", "passes": False, "reasoning": "rude"}
        make.binary_judge(key="near", criteria="It is kind.", judge_model="tiny", examples=[example])
        make.prebuilt_judge(key="relevant", type="ANSWER_RELEVANCY", judge_model="tiny")
        admin.recipes.upload(str(folder / "grades.py"))
        yield admin


def run(sdk: Adaptive, *graders: str, **args: Any) -> tuple[str, str]:
    """How the recipe ends, and what it wrote."""
    job = sdk.jobs.run("grades", 0, args={"graders": graders, **args})
    end = time.monotonic() + 240
    while (found := sdk.jobs.get(job.id)) is None or found.status in ("PENDING", "RUNNING"):
        assert time.monotonic() < end
        time.sleep(0.1)
    return found.status, sdk.jobs.logs(job.id) + str(found.error)


def graded(log: str) -> dict[str, tuple[list[dict[str, Any]], dict[str, float]]]:
    """Grades and logs by grader."""
    lines = [json.loads(line.partition("GRADED ")[2]) for line in log.splitlines() if "GRADED " in line]
    return {key: (grades, logs) for key, grades, logs in lines}


def test_every_kind_grades_in_a_recipe(sdk: Adaptive, provider: Provider) -> None:
    status, log = run(sdk, "length", "polite", "far", "outside", "near", "relevant")
    assert status == "COMPLETED", log
    found = graded(log)
    assert found["length"][0][0]["value"] == len("Yes, please")
    assert found["polite"][0][0]["value"] == 1.0
    ((far,), far_logs) = found["far"]
    told = json.loads(far["reasoning"])["told"]
    assert far["value"] == len("Yes, please") and told["number"] == 0 and Path(told["place"]).is_absolute()
    assert far_logs["score/count"] == far_logs["score/scored_samples_count"] == 1
    assert found["outside"][0] == [{"value": 1.0, "reasoning": "kind"}]
    assert "It is kind." in str(provider.asked[-1]["messages"])
    for key in ("near", "relevant"):  # a random model may pass, fail, or never end its reasoning
        ((verdict,), logs) = found[key]
        assert verdict.get("value") in (0.0, 1.0) or verdict["error"] in ("JsonParseError", "IgnoreGradeException"), log
        assert logs["score/scored_samples_count"] + logs["score/unscored_samples_count"] == 1
    assert f"TOGETHER {(11 + 1 + 11 + 1) / 4}" in log


def test_what_is_graded_together_travels_together_and_fails_alone(sdk: Adaptive, rewards: RewardServer) -> None:
    rewards.batches.clear()
    status, log = run(sdk, "far", questions=[*map(str, range(40)), REFUSED])
    assert status == "COMPLETED", log
    ((*good, bad), logs) = graded(log)["far"]
    assert {each["value"] for each in good} == {11.0}
    assert [json.loads(each["reasoning"])["told"]["number"] for each in good] == list(range(40))
    assert bad["error"] == "InvalidRequestError" and "no such question" in bad["says"] and "'far'" in bad["says"]
    assert (logs["score/scored_samples_count"], logs["score/unscored_samples_count"]) == (40, 1)
    assert sorted(rewards.batches) == [*[1] * 9, 9, 32], "two requests, and one by one what was refused"


def test_a_server_that_is_down_and_a_judge_that_cannot_be_read(
    sdk: Adaptive, rewards: RewardServer, provider: Provider
) -> None:
    rewards.is_broken, provider.answers = True, ["I would say so", "Indeed", PASS]
    status, log = run(sdk, "far", "outside")
    rewards.is_broken = False
    assert status == "COMPLETED", log
    found = graded(log)
    ((far,), _), ((outside,), logs) = found["far"], found["outside"]
    assert far["error"] == "UnavailableError" and "see whether its server is up" in far["says"]
    assert outside["error"] == "JsonParseError" and "Indeed" in outside["says"]
    assert logs["score/unscored_samples_count"] == 1


def test_what_cannot_be_loaded_says_so(sdk: Adaptive) -> None:
    status, log = run(sdk, "unknown")
    assert status == "FAILED"
    assert "'unknown' is of type Custom" in log and "this one brings polite" in log
