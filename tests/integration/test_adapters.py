"""Adapters that PEFT made, on a model that transformers made, all in one batch."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from harmonia.config import CacheConfig, EngineConfig
from harmonia.engine.engine import Engine
from harmonia.engine.requests import SequenceOutput, SequenceRequest, pack_ids
from harmonia.errors import AdapterLimitError, InvalidRequestError, UnknownModelError
from harmonia.protocol.sampling import SamplingParams

PROMPT = [5, 80, 33, 9, 61, 7, 22, 14]
ALL_LINEAR = ["q_proj", "k_proj", "v_proj", "o_proj", "gate_proj", "up_proj", "down_proj"]
ADAPTERS = {
    "small": LoraConfig(r=2, lora_alpha=16, target_modules=["q_proj", "v_proj"]),
    "wide": LoraConfig(r=8, lora_alpha=4, target_modules=ALL_LINEAR),
    "stable": LoraConfig(r=4, lora_alpha=8, use_rslora=True, target_modules=["o_proj", "down_proj"]),
    "mixed": LoraConfig(
        r=4,
        lora_alpha=8,
        target_modules=["q_proj", "up_proj", "down_proj"],
        rank_pattern={"layers.1.self_attn.q_proj": 6, "up_proj": 2},
        alpha_pattern={"up_proj": 32},
    ),
}


@pytest.fixture(scope="module")
def model_path(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    path = tmp_path_factory.mktemp("llama")
    config = LlamaConfig(
        vocab_size=96,
        hidden_size=32,
        intermediate_size=64,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=128,
        initializer_range=0.2,
        eos_token_id=95,
    )
    LlamaForCausalLM(config).save_pretrained(path)
    return path


@pytest.fixture(scope="module")
def adapter_paths(model_path: Path, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    root = tmp_path_factory.mktemp("adapters")
    for number, (key, config) in enumerate(ADAPTERS.items()):
        torch.manual_seed(number + 1)
        model = get_peft_model(AutoModelForCausalLM.from_pretrained(model_path), config)
        for name, parameter in model.named_parameters():
            if "lora_" in name:
                torch.nn.init.normal_(parameter, std=0.2)
        model.save_pretrained(root / key)
    return {key: root / key for key in ADAPTERS}


@pytest.fixture
def engine(model_path: Path) -> Engine:
    return Engine.load(
        str(model_path), "base", EngineConfig(device="cpu", num_threads=1, cache=CacheConfig(kv_cache_len=2048))
    )


def ask(engine: Engine, seq_id: int, model: str) -> None:
    sampling = SamplingParams(temperature=0.0, max_tokens=12, logprobs=0, ignore_eos=True)
    engine.add(
        SequenceRequest(
            seq_id=seq_id, model=model, token_ids=pack_ids(PROMPT), sampling=sampling, arrival_s=time.monotonic()
        )
    )


def drain(engine: Engine) -> dict[int, list[SequenceOutput]]:
    outputs: dict[int, list[SequenceOutput]] = {}
    while engine.has_work:
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
    return outputs


def test_a_mixed_batch_gives_each_request_what_peft_gives_it(
    engine: Engine, model_path: Path, adapter_paths: dict[str, Path]
) -> None:
    for key, path in adapter_paths.items():
        engine.load_adapter(key, str(path))
    models = ["base", *adapter_paths, "base", *adapter_paths]
    for seq_id, model in enumerate(models):
        ask(engine, seq_id, model)
    outputs = drain(engine)
    for seq_id, model in enumerate(models):
        tokens = [token for output in outputs[seq_id] for token in output.token_ids]
        found = [score.logprob for output in outputs[seq_id] for score in output.scores]
        logprobs = torch.log_softmax(_peft_logits(model_path, adapter_paths.get(model), PROMPT + tokens), dim=-1)
        rows = logprobs[len(PROMPT) - 1 : -1]
        assert rows.argmax(-1).tolist() == tokens
        assert found == pytest.approx(rows.gather(1, torch.tensor(tokens)[:, None])[:, 0].tolist(), abs=1e-4)


def _peft_logits(model_path: Path, adapter: Path | None, tokens: list[int]) -> torch.Tensor:
    model = AutoModelForCausalLM.from_pretrained(model_path)
    if adapter is not None:
        model = PeftModel.from_pretrained(model, adapter)
    with torch.inference_mode():
        return model(torch.tensor([tokens])).logits[0].float()


def test_the_fifth_adapter_is_refused_and_unloading_makes_room(engine: Engine, adapter_paths: dict[str, Path]) -> None:
    for key, path in adapter_paths.items():
        engine.load_adapter(key, str(path))
    with pytest.raises(AdapterLimitError, match=r"limit of 4 adapters.*max_adapters"):
        engine.load_adapter("fifth", str(adapter_paths["small"]))
    engine.remove_instance("wide")
    engine.load_adapter("fifth", str(adapter_paths["small"]))
    ask(engine, 0, "fifth")
    ask(engine, 1, "small")
    outputs = drain(engine)
    assert [o.token_ids for o in outputs[0]] == [o.token_ids for o in outputs[1]]
    with pytest.raises(UnknownModelError, match="'wide'"):
        ask(engine, 2, "wide")


def test_unloading_ends_the_requests_of_that_adapter_alone(engine: Engine, adapter_paths: dict[str, Path]) -> None:
    engine.load_adapter("small", str(adapter_paths["small"]))
    ask(engine, 0, "small")
    ask(engine, 1, "base")
    engine.step()
    engine.remove_instance("small")
    outputs = drain(engine)
    assert outputs[0][-1].error is not None
    assert outputs[0][-1].error.code == "unavailable"
    assert outputs[1][-1].finish_reason == "length"


def test_a_reloaded_adapter_never_meets_the_cache_of_the_one_before(
    engine: Engine, adapter_paths: dict[str, Path]
) -> None:
    prompts = {}
    for key in ("wide", "mixed"):
        engine.load_adapter("name", str(adapter_paths[key]))
        for seq_id in (0, 1):
            ask(engine, seq_id, "name")
            prompts[key, seq_id] = [output.token_ids for output in drain(engine)[seq_id]]
        engine.remove_instance("name")
    assert prompts["wide", 0] == prompts["wide", 1]
    assert prompts["mixed", 0] == prompts["mixed", 1]
    assert prompts["wide", 0] != prompts["mixed", 0]


def _without_config(folder: Path) -> None:
    (folder / "adapter_config.json").unlink()


def _broken_config(folder: Path) -> None:
    (folder / "adapter_config.json").write_text("{")


def _truncated_weights(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    file.write_bytes(file.read_bytes()[:-100])


def _without_weights(folder: Path) -> None:
    (folder / "adapter_model.safetensors").unlink()


def _wrong_rank(folder: Path) -> None:
    _edit(folder, r=7)


def _dora(folder: Path) -> None:
    _edit(folder, use_dora=True)


def _prefix_tuning(folder: Path) -> None:
    _edit(folder, peft_type="PREFIX_TUNING")


def _edit(folder: Path, **changes: object) -> None:
    file = folder / "adapter_config.json"
    file.write_text(json.dumps({**json.loads(file.read_text()), **changes}))


def _one_half(folder: Path) -> None:
    _change_tensors(folder, lambda name, tensor: None if name.endswith("0.self_attn.q_proj.lora_B.weight") else tensor)


def _wrong_shape(folder: Path) -> None:
    _change_tensors(
        folder, lambda name, tensor: tensor[:, :-1].contiguous() if name.endswith("lora_A.weight") else tensor
    )


def _unknown_module(folder: Path) -> None:
    file = folder / "adapter_model.safetensors"
    save_file({name.replace("q_proj", "z_proj"): tensor for name, tensor in load_file(file).items()}, file)


def _change_tensors(folder: Path, change) -> None:
    file = folder / "adapter_model.safetensors"
    changed = {name: change(name, tensor) for name, tensor in load_file(file).items()}
    save_file({name: tensor for name, tensor in changed.items() if tensor is not None}, file)


@pytest.mark.parametrize(
    ("damage", "named"),
    [
        (_without_config, "adapter_config.json"),
        (_broken_config, "adapter_config.json is broken"),
        (_truncated_weights, "adapter_model.safetensors is broken"),
        (_without_weights, "adapter_model.safetensors"),
        (_wrong_rank, "rank 2, but adapter_config.json says 7"),
        (_dora, "use_dora is not supported"),
        (_prefix_tuning, "PREFIX_TUNING"),
        (_one_half, "lora_A or lora_B"),
        (_wrong_shape, "expected"),
        (_unknown_module, "z_proj"),
    ],
)
def test_broken_folders_are_named_and_take_nothing(
    engine: Engine, adapter_paths: dict[str, Path], tmp_path: Path, damage, named: str
) -> None:
    folder = tmp_path / "adapter"
    folder.mkdir()
    for file in adapter_paths["small"].iterdir():
        (folder / file.name).write_bytes(file.read_bytes())
    damage(folder)
    with pytest.raises(InvalidRequestError, match=named):
        engine.load_adapter("broken", str(folder))
    for key, path in adapter_paths.items():
        engine.load_adapter(key, str(path))


def test_a_rank_above_the_limit_names_the_setting(model_path: Path, adapter_paths: dict[str, Path]) -> None:
    config = EngineConfig(device="cpu", max_adapter_rank=4, cache=CacheConfig(kv_cache_len=512))
    engine = Engine.load(str(model_path), "base", config)
    with pytest.raises(InvalidRequestError, match=r"rank 8 .* max_adapter_rank 4"):
        engine.load_adapter("wide", str(adapter_paths["wide"]))
