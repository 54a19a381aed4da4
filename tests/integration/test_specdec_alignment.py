"""The recipe `specdec_alignment` on a real worker: a draft is cut, trained, measured, saved, and used."""

import json
from pathlib import Path
from typing import Any

import pytest
from transformers import AutoModelForCausalLM

from harmonia.client import HarmonyClient, StringThread
from harmonia.client.recipe import (
    JournalJobNotifier,
    RecipeConfig,
    RecipeContext,
    read_journal,
    read_metrics,
    run_recipe,
)
from harmonia.client.recipe.journal_state import read_restore_data
from harmonia.errors import HarmoniaError, InvalidRequestError, TokenizerMismatchError
from harmonia.models.adaptive_info import read_info
from harmonia.recipes.specdec_alignment.main import SUMMARY, specdec_alignment
from tests.integration.tiny_model import make_draft, make_model

QUICK = {"learning_rate": 0.01, "max_answer_tokens": 24, "max_sequence_length": 256, "validation_share": 0.2}


def write_prompts(folder: Path, *more: str) -> Path:
    prompts = [f"{word} {number}?" for word in ("who", "why", "how") for number in range(10)]
    lines = [{"messages": [{"role": "user", "content": prompt}]} for prompt in (*prompts, *more)]
    (folder / "prompts.jsonl").write_text("\n".join(map(json.dumps, lines)))
    return folder / "prompts.jsonl"


async def accelerate(
    address: str, folder: Path, restore_data: dict[str, Any] | None = None, **given: Any
) -> list[dict[str, Any]]:
    """Run it as a job with its journal in `folder`, or go on with it; the records that it logged."""
    job_id = f"job-{folder.parent.name}"
    job, config = JournalJobNotifier(folder, job_id), RecipeConfig(harmony_url=address, job_id=job_id)
    async with RecipeContext.from_config(config, job=job, checkpoint_restore_data=restore_data) as ctx:
        await run_recipe(ctx, specdec_alignment, {**QUICK, **given})
    return [record.metrics for record in read_metrics(folder)]


def column(records: list[dict[str, Any]], name: str) -> list[float]:
    return [record[name] for record in records if name in record]


@pytest.fixture(autouse=True)
def no_checkpoints(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HARMONY_NO_CHECKPOINTING", "1")


async def test_a_cut_draft_learns_and_is_saved_beside_its_target(
    address: str, client: HarmonyClient, tiny: Path, registry: Path, tmp_path: Path
) -> None:
    prompts = write_prompts(tmp_path)
    given = {"target_model": str(tiny), "draft_model": "layers:1", "dataset": str(prompts), "epochs": 16}
    records = await accelerate(address, tmp_path / "job", **given, num_draft_steps=3)
    state = read_journal(tmp_path / "job")
    assert [stage.name for stage in state.stages] == ["Measuring before", "Answering", "Training", "Measuring after"]
    assert all(stage.processed == stage.total for stage in state.stages)
    assert [model.name for model in state.artifacts] == ["tiny_accelerated"]

    rates = column(records, "train/acceptance_rate")
    third = len(rates) // 3
    assert sum(rates[-third:]) > 1.5 * sum(rates[:third])
    before, after = column(records, "val/acceptance_rate")
    assert after > before
    assert {"train/loss", "train/gradient_norm", "train/overlap"} <= records[1].keys()
    (table,) = [record[SUMMARY] for record in records if SUMMARY in record]
    assert [row[0] for row in table["rows"]] == ["none", "before training", "after training"]

    folder = registry / "tiny_accelerated"
    assert AutoModelForCausalLM.from_pretrained(folder).config.num_hidden_layers == 1
    info = read_info(folder)
    assert info is not None and (info.draft_target, info.num_draft_steps) == (str(tiny), 3)
    builder = client.model("model_registry://tiny_accelerated", tokens_to_generate=24)
    accelerated = (await builder.spawn_inference("accelerated")).temperature(0)
    plain = (await client.model(str(tiny), tokens_to_generate=24).spawn_inference("plain")).temperature(0)
    question = StringThread([("user", "who is 3?")])
    answer, timings = await accelerated.generate(question, return_timings=True)
    assert answer.last_content() == (await plain.generate(question)).last_content()
    assert timings.num_drafted_tokens > 0


async def test_it_goes_on_at_its_checkpoint(
    address: str, tiny: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv("HARMONY_NO_CHECKPOINTING")
    monkeypatch.setenv("RECIPE_CHECKPOINTS_DIR", str(tmp_path / "checkpoints"))
    given = {"target_model": str(tiny), "draft_model": "layers:1", "dataset": str(write_prompts(tmp_path)), "epochs": 4}
    folder = tmp_path / "job"
    first = await accelerate(address, folder, **given, output_model_key="late")
    both = await accelerate(address, folder, read_restore_data(folder), **given, output_model_key="late")
    again = both[len(first) :]
    steps = len(column(first, "train/acceptance_rate"))
    assert 0 < len(column(again, "train/acceptance_rate")) < steps == 12
    assert len(column(again, "val/acceptance_rate")) == 1
    (table,) = [record[SUMMARY] for record in again if SUMMARY in record]
    assert [row[0] for row in table["rows"]] == ["none", "after training"]


async def test_a_draft_of_its_own_with_an_adapter_and_its_own_answers(
    address: str, client: HarmonyClient, tiny: Path, registry: Path, tmp_path: Path
) -> None:
    draft = make_draft(tmp_path / "draft", tiny, str(tiny))
    given = {"target_model": str(tiny), "draft_model": str(draft), "dataset": str(write_prompts(tmp_path))}
    given |= {"output_model_key": "fast", "adapter": True, "on_policy_share": 0.5, "divergence": "total_variation"}
    records = await accelerate(address, tmp_path / "job", **given, steps=5, samples_per_batch=4, temperature=0.7)
    assert len(column(records, "train/acceptance_rate")) == 5
    before, _ = column(records, "val/acceptance_rate")
    assert before > 0.9  # it is the target itself
    assert (registry / "fast" / "config.json").exists() and not (registry / "fast" / "adapter_config.json").exists()


async def test_the_target_may_be_an_adapter(address: str, client: HarmonyClient, tiny: Path, tmp_path: Path) -> None:
    trained = await client.model(str(tiny)).with_adapter(rank=2).spawn_train("trained", 128)
    await trained.train_language_modelling(StringThread([("user", "who"), ("assistant", "me")]))
    await trained.optim_step(0.1)
    await trained.save("tuned")
    given = {"target_model": "tuned", "draft_model": "layers:1", "dataset": str(write_prompts(tmp_path)), "steps": 3}
    records = await accelerate(address, tmp_path / "job", **given)
    assert len(column(records, "train/acceptance_rate")) == 3
    builder = client.model("model_registry://tuned_accelerated", tokens_to_generate=16)
    accelerated = (await builder.spawn_inference("accelerated-adapter")).temperature(0)
    question = StringThread([("user", "who is 3?")])
    answer, timings = await accelerated.generate(question, return_timings=True)
    plain = trained.temperature(0).max_gen_len(16)
    assert answer.last_content() == (await plain.generate(question)).last_content()
    assert timings.num_drafted_tokens > 0


async def test_prompts_without_room_for_an_answer_are_counted(address: str, tiny: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, *(f"{number} " * 400 for number in range(3)))
    given = {"target_model": str(tiny), "draft_model": "layers:1", "dataset": str(prompts), "steps": 1}
    records = await accelerate(address, tmp_path / "job", **given, output_model_key="counted")
    (dropped, *_) = [record["num_dropped_samples"] for record in records if record.keys() == {"num_dropped_samples"}]
    assert 1 <= dropped <= 3


async def test_answers_that_are_too_long_to_learn_from_are_counted(address: str, tiny: Path, tmp_path: Path) -> None:
    prompts = write_prompts(tmp_path, *(f"{number} " * 150 for number in range(3)))
    given = {"target_model": str(tiny), "draft_model": "layers:1", "dataset": str(prompts), "steps": 1}
    records = await accelerate(address, tmp_path / "job", **given, output_model_key="short")
    (dropped, *_) = [record["num_dropped_samples"] for record in records if record.keys() == {"num_dropped_samples"}]
    assert 1 <= dropped <= 3
    with pytest.raises(InvalidRequestError, match="longer with their answer than max_sequence_length 32; raise it"):
        await accelerate(address, tmp_path / "none", **given, output_model_key="none", max_sequence_length=32)


async def test_what_cannot_be_is_said_before_anything_is_loaded(address: str, tiny: Path, tmp_path: Path) -> None:
    given = {"target_model": str(tiny), "draft_model": "layers:1", "dataset": str(write_prompts(tmp_path))}
    with pytest.raises(InvalidRequestError, match="layers:2 is no smaller than the target, which has 2 layers"):
        await accelerate(address, tmp_path / "a", **given | {"draft_model": "layers:2"})
    saved = make_draft(tmp_path / "saved", tiny, str(tiny))
    with pytest.raises(InvalidRequestError, match=f"is a draft of {tiny}; name that as the target"):
        await accelerate(address, tmp_path / "b", **given | {"target_model": str(saved)})
    (tmp_path / "empty.jsonl").touch()
    with pytest.raises(InvalidRequestError, match=r"empty|no rows|give more prompts"):
        await accelerate(address, tmp_path / "c", **given | {"dataset": str(tmp_path / "empty.jsonl")})
    with pytest.raises(HarmoniaError, match="nowhere"):
        await accelerate(address, tmp_path / "d", **given | {"draft_model": "nowhere"})


async def test_a_draft_with_another_tokenizer(address: str, tiny: Path, tmp_path: Path) -> None:
    other = make_model(tmp_path / "other")
    tokenizer = json.loads((other / "tokenizer.json").read_text())
    vocabulary = tokenizer["model"]["vocab"]
    vocabulary["A"], vocabulary["B"] = vocabulary["B"], vocabulary["A"]
    (other / "tokenizer.json").write_text(json.dumps(tokenizer))
    given = {"target_model": str(tiny), "draft_model": str(other), "dataset": str(write_prompts(tmp_path))}
    with pytest.raises(TokenizerMismatchError, match="another tokenizer"):
        await accelerate(address, tmp_path / "job", **given, output_model_key="never")
