"""Models cut down to some layers when they are spawned: trained, saved whole, and drafting for their origin."""

from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, AutoTokenizer

from harmonia.client import HarmonyClient, StringThread
from harmonia.errors import InvalidRequestError
from harmonia.models.adaptive_info import read_info

QUESTION = StringThread([("user", "why"), ("assistant", "because")]).with_weight_last_assistant_turn()


async def test_a_trained_cut_is_a_complete_model(client: HarmonyClient, tiny: Path, registry: Path) -> None:
    draft = await client.model(str(tiny)).keep_layers([1]).spawn_train("cut", 128)
    before = await draft.logprobs(QUESTION)
    for _ in range(3):
        await draft.train_language_modelling(QUESTION)
        await draft.optim_step(1e-2)
    after = await draft.logprobs(QUESTION)
    assert after > before

    await draft.save("cut-draft", draft_target=str(tiny), num_draft_steps=3)
    folder = registry / "cut-draft"
    model = AutoModelForCausalLM.from_pretrained(folder)
    assert model.config.num_hidden_layers == len(model.model.layers) == 1
    ids, _, weights = await draft.serialize_thread(QUESTION)
    with torch.inference_mode():
        logprobs = model(torch.tensor([ids])).logits[0].log_softmax(-1)
    expected = sum(float(logprobs[at - 1, ids[at]]) for at, weight in enumerate(weights) if weight)
    assert after == pytest.approx(expected, abs=1e-3)
    tokenizer, original = AutoTokenizer.from_pretrained(folder), AutoTokenizer.from_pretrained(tiny)
    assert tokenizer.get_vocab() == original.get_vocab() and tokenizer.chat_template == original.chat_template
    info = read_info(folder)
    assert info is not None and (info.draft_target, info.num_draft_steps) == (str(tiny), 3)


async def test_cuts_and_the_whole_stand_beside_each_other(client: HarmonyClient, tiny: Path) -> None:
    builder = client.model(str(tiny))
    whole = await builder.spawn_inference("whole")
    first = await builder.keep_layers((0,)).spawn_inference("first")
    second = await builder.keep_layers((1,)).spawn_inference("second")
    same = await builder.keep_layers((0, 1)).spawn_inference("same")
    values = [await model.logprobs(QUESTION) for model in (whole, first, second, same)]
    assert values[0] == values[3]
    assert len(set(values)) == 3


async def test_a_cut_drafts_for_its_origin(client: HarmonyClient, tiny: Path) -> None:
    everything = await client.model(str(tiny)).keep_layers((0, 1)).spawn_train("everything", 128)
    await everything.save("drafts/everything")
    builder = client.model(str(tiny), tokens_to_generate=24)
    plain = (await builder.spawn_inference("plain")).temperature(0)
    drafted = (await builder.with_draft("model_registry://drafts/everything").spawn_inference("drafted")).temperature(0)
    question = StringThread([("user", "which")])
    answer, timings = await drafted.generate(question, return_timings=True)
    assert answer.last_content() == (await plain.generate(question)).last_content()
    assert timings.num_accepted_tokens == timings.num_drafted_tokens > 0
    assert timings.spec_dec_acceptance_rate == 1.0


async def test_an_adapter_is_merged_into_what_it_changes(client: HarmonyClient, tiny: Path, registry: Path) -> None:
    draft = await client.model(str(tiny)).keep_layers([0]).with_adapter(rank=4).spawn_train("adapter", 128)
    for _ in range(3):
        await draft.train_language_modelling(QUESTION)
        await draft.optim_step(1e-2)
    await draft.save("merged-draft", merged=True)
    assert (registry / "merged-draft/config.json").exists()
    assert not (registry / "merged-draft/adapter_config.json").exists()
    merged = await client.model("model_registry://merged-draft").spawn_inference("merged")
    assert await merged.logprobs(QUESTION) == pytest.approx(await draft.logprobs(QUESTION), abs=1e-3)
    with pytest.raises(InvalidRequestError, match="no optimizer state"):
        await draft.save("merged-draft", inference_only=False, merged=True)


async def test_an_adapter_of_a_cut_is_refused_elsewhere(client: HarmonyClient, tiny: Path) -> None:
    draft = await client.model(str(tiny)).keep_layers([0]).with_adapter(rank=4).spawn_train("own", 128)
    await draft.save("drafts/own")
    with pytest.raises(InvalidRequestError, match=r"1 layers.*2 layers"):
        await client.model("model_registry://drafts/own").spawn_inference("elsewhere")
    with pytest.raises(InvalidRequestError, match="keep_layers cuts whole models"):
        await client.model("model_registry://drafts/own").keep_layers([0]).spawn_inference("elsewhere")


@pytest.mark.parametrize(
    ("layers", "says"), [((), "at least one"), ((2,), "0 to 1"), ((1, 0), "rise"), ((0, 0), "rise"), ((-1,), "0 to 1")]
)
async def test_layers_that_cannot_be_kept(
    client: HarmonyClient, tiny: Path, layers: tuple[int, ...], says: str
) -> None:
    builder = client.model(str(tiny)).keep_layers(layers)
    for asked in (builder.spawn_train("no", 128), builder.spawn_inference("no"), builder.plan_train(128)):
        with pytest.raises(InvalidRequestError, match=says):
            await asked


async def test_the_plan_is_that_of_the_layers(client: HarmonyClient, tiny: Path) -> None:
    whole, cut = client.model(str(tiny)), client.model(str(tiny)).keep_layers([0])
    assert (await cut.plan_train(128))["total_bytes"] < (await whole.plan_train(128))["total_bytes"]
    assert cut.to_python_dict()["keep_layers"] == (0,)
