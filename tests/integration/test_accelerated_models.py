"""A saved draft answers as its target, with itself as the draft: spawned, served and planned by its own name."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from openai import OpenAI
from openai.types.completion_usage import CompletionTokensDetails
from typer.testing import CliRunner

from harmonia.cli.main import app
from harmonia.client import HarmonyClient
from harmonia.errors import InvalidRequestError, TokenizerMismatchError, UnknownModelError, UnsupportedModelError
from harmonia.models.adaptive_info import FILE, AdaptiveInfo, read_info, write_info
from harmonia.threads import StringThread
from tests.integration.conftest import StartServer
from tests.integration.tiny_model import MAX_LEN, make_adapter, make_draft, make_merged_draft

ASK = StringThread([("user", "Tell me something, and tell me something again.")])
CACHE = 1024


async def greedy(client: HarmonyClient, model: str, name: str) -> tuple[str, float | None]:
    """What a model answers, and how many of the proposals were right."""
    spawned = await client.model(model, kv_cache_len=CACHE).spawn_inference(name)
    answer, timings = await spawned.temperature(0.0).max_gen_len(40).generate(ASK, return_timings=True)
    return answer.last_content(), timings.spec_dec_acceptance_rate


async def test_it_is_spawned_with_its_target(client: HarmonyClient, tiny: Path, registry: Path) -> None:
    draft = make_draft(registry / "spawned_accelerated", tiny, str(tiny), num_draft_steps=3, noise=0.002)
    by_key = "model_registry://spawned_accelerated"
    plain, nothing = await greedy(client, str(tiny), "plain")
    answer, acceptance = await greedy(client, by_key, "fast")
    assert (answer, nothing) == (plain, None)
    assert acceptance is not None and 0 < acceptance <= 1
    assert (await greedy(client, str(draft), "also-fast"))[0] == plain
    planned = await client.model(by_key, kv_cache_len=CACHE).plan_inference()
    assert "draft: weights" in [row["name"] for row in planned["rows"]]
    said = await client.describe(by_key)
    assert (said.draft_target, said.num_draft_steps, said.max_seq_len) == (str(tiny), 3, MAX_LEN)


async def test_training_it_trains_the_draft_which_stays_one(client: HarmonyClient, tiny: Path, registry: Path) -> None:
    (registry / "target").symlink_to(tiny)
    make_draft(registry / "target_accelerated", tiny, "target", num_draft_steps=2, noise=0.05)
    builder = client.model("model_registry://target_accelerated", kv_cache_len=CACHE)
    draft = await builder.spawn_train("draft", max_batch_size=256)
    lesson = ASK.assistant("Something.")
    before = await draft.logprobs(lesson)
    for _ in range(3):
        await draft.train_language_modelling(lesson)
        await draft.optim_step(0.01, 0.0, 1.0, False)
    assert await draft.logprobs(lesson) > before
    await draft.save("again_accelerated")
    info = read_info(registry / "again_accelerated")
    assert info is not None and (info.draft_target, info.num_draft_steps) == ("target", 2)
    with pytest.raises(InvalidRequestError, match="num_draft_steps"):
        await draft.save("never", draft_target="target", num_draft_steps=9)
    await draft.dealloc()
    answer, acceptance = await greedy(client, "model_registry://again_accelerated", "again")
    assert answer == (await greedy(client, str(tiny), "plain"))[0]
    assert acceptance is not None


async def test_an_adapter_in_training_answers_with_its_draft(client: HarmonyClient, tiny: Path) -> None:
    builder = client.model(str(tiny), kv_cache_len=CACHE).with_adapter(rank=2)
    both = [await builder.with_draft(str(tiny), 3).spawn_train("drafted", 256)]
    both.append(await builder.spawn_train("plain", 256))
    for steps in range(2):
        told = []
        for model in both:
            asked = model.temperature(0.0).max_gen_len(40)
            told.append(await asked.generate(ASK, return_timings=True))
            # Where proposals do not pay, as with so small a model, they are tried seldom.
            for _ in range(200 if model is both[0] else 0):
                if told[-1][1].num_drafted_tokens:
                    break
                told[-1] = await asked.generate(ASK, return_timings=True)
            await model.train_language_modelling(ASK.assistant("Something."))
            await model.optim_step(0.3, 0.0, 1.0, False)
        (fast, proposed), (slow, nothing) = told
        assert fast.last_content() == slow.last_content()
        assert nothing.num_drafted_tokens == 0 < proposed.num_drafted_tokens
        # Untrained it is its base model; trained it is not what the draft expects.
        assert (proposed.spec_dec_acceptance_rate == 1) == (steps == 0)


async def test_what_cannot_be_put_together_is_named(client: HarmonyClient, tiny: Path, tmp_path: Path) -> None:
    async def refused(path: Path) -> str:
        with pytest.raises(InvalidRequestError) as refusal:
            await client.model(str(path), kv_cache_len=CACHE).spawn_inference("never")
        return refusal.value.message

    make_draft(tmp_path / "orphan", tiny, "gone")
    with pytest.raises(UnknownModelError, match=r"orphan drafts for gone, .*no model 'gone' in the registry"):
        await client.model(str(tmp_path / "orphan")).spawn_inference("never")
    make_draft(tmp_path / "own", tiny, str(tmp_path / "own"))
    assert "which is a draft itself" in await refused(tmp_path / "own")
    make_draft(tmp_path / "one", tiny, str(tmp_path / "other"))
    make_draft(tmp_path / "other", tiny, str(tmp_path / "one"))
    assert "name the model that answers" in await refused(tmp_path / "one")
    adapter = make_adapter(tmp_path / "adapter")
    write_info(adapter, AdaptiveInfo(kind="adapter", base=str(tiny), draft_target=str(tiny)))
    assert "a draft is a whole model" in await refused(adapter)
    stranger = make_draft(tmp_path / "stranger", tiny, str(tiny))
    words = stranger / "tokenizer.json"
    words.write_text(words.read_text().replace("<|im_start|>", "<|begin|>"))
    with pytest.raises(TokenizerMismatchError, match=r"stranger has another tokenizer than .*<\|begin\|>"):
        await client.model(str(stranger)).spawn_inference("never")
    broken = make_draft(tmp_path / "broken", tiny, str(tiny))
    file = broken / FILE
    file.write_text(json.dumps({**json.loads(file.read_text()), "num_draft_steps": 9}))
    with pytest.raises(UnsupportedModelError, match="num_draft_steps"):
        await client.model(str(broken)).spawn_inference("never")
    good = make_draft(tmp_path / "good", tiny, str(tiny))
    for nothing in ("ngrm", "", "model_registry://gone"):
        with pytest.raises(UnknownModelError, match=rf"the draft '{nothing}' cannot be found .* or 'ngram'"):
            await client.model(str(tiny)).with_draft(nothing).spawn_inference("never")
    with pytest.raises(InvalidRequestError, match="leave the draft ngram out"):
        await client.model(str(good)).with_draft("ngram").spawn_inference("never")


def test_it_is_served_and_planned(start: StartServer, tiny: Path, tmp_path: Path) -> None:
    draft = make_draft(tmp_path / "tiny_accelerated", shutil.copytree(tiny, tmp_path / "copy"), "tiny", 2)
    (tmp_path / "tiny").symlink_to(tiny)
    options = ("--kv-cache-len", str(CACHE), "--threads", "1", "--registry", str(tmp_path))
    with start(draft, *options) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        assert [model.id for model in client.models.list()] == ["tiny_accelerated"]
        answer = client.chat.completions.create(
            model="tiny_accelerated", messages=[{"role": "user", "content": "Hello"}], temperature=0, max_tokens=30
        )
        assert answer.usage is not None and answer.usage.completion_tokens_details is not None
        assert answer.usage.completion_tokens_details.accepted_prediction_tokens
    shown = plan("model_registry://tiny_accelerated", tmp_path)
    asked = plan("model_registry://tiny", tmp_path, "--draft", str(draft))
    assert shown["rows"] == asked["rows"]
    assert shown["model"] == "tiny"
    trained = plan("model_registry://tiny_accelerated", tmp_path, "--train", "--max-batch-size", "64")
    assert "draft: weights" not in [row["name"] for row in trained["rows"]]
    with start(tiny, "--num-draft-steps", "2", ready=False) as refused:
        assert refused.process.wait(90) == 1
    assert "name a smaller model, or 'ngram'" in refused.output


def test_a_draft_of_an_adapter_is_served_and_planned(start: StartServer, tiny: Path, tmp_path: Path) -> None:
    tuned = make_adapter(tmp_path / "tuned", strength=0.02, base=tiny)
    fast = make_merged_draft(tmp_path / "tuned_accelerated", tiny, tuned, 2)
    options = ("--kv-cache-len", str(CACHE), "--threads", "1", "--registry", str(tmp_path))
    told = [chat(start, "tuned_accelerated", fast, *options), chat(start, "tuned", tuned, *options)]
    told += [chat(start, "beside", tiny, *options, "--draft", str(tiny), "--adapter", f"beside={tuned}")]
    (text, shares), (plain, none), (same, others) = told
    assert text == plain == same
    assert shares is not None and shares.rejected_prediction_tokens == 0 and none is None
    assert others is not None
    rows = {row["name"]: row["note"] for row in plan("model_registry://tuned_accelerated", tmp_path)["rows"]}
    assert "draft: weights" in rows and rows["adapters"] == "132 rank rows"
    assert plan("model_registry://tuned", tmp_path)["model"] == "tiny"


def test_an_adapter_without_its_base_says_what_to_do(start: StartServer, tmp_path: Path) -> None:
    lost = make_adapter(tmp_path / "lost", base=Path("somebody/model"))
    with start(lost, ready=False) as refused:
        assert refused.process.wait(90) == 1
    assert "lost is an adapter of somebody/model, which is not here" in refused.output
    assert "base_model_name_or_path" in refused.output


def chat(start: StartServer, key: str, model: Path, *options: str) -> tuple[str | None, CompletionTokensDetails | None]:
    """What a server says as one of its models, and what of that was proposed."""
    with start(model, *options) as server, OpenAI(base_url=f"{server.url}/v1", api_key="none") as client:
        asked = [{"role": "user", "content": ASK.last_content()}]
        answer = client.chat.completions.create(model=key, messages=asked, temperature=0, max_tokens=40)  # type: ignore[arg-type]
        assert answer.usage is not None
        return answer.choices[0].message.content, answer.usage.completion_tokens_details


def plan(model: str, registry: Path, *options: str) -> dict[str, list[dict[str, object]]]:
    command = ["plan", model, "--registry", str(registry), "--kv-cache-len", "1024", "--device", "cpu", "--json"]
    result = CliRunner().invoke(app, [*command, *options])
    assert result.exit_code == 0, result.output
    planned: dict[str, list[dict[str, object]]] = json.loads(result.output)
    return planned
