"""What is saved from a real GGUF model opens elsewhere: the whole model in transformers, an adapter in PEFT."""

import shutil

import pytest
import torch
from peft import PeftModel
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from harmonia.layers.adapters import AdapterBank, BankTarget, LoraMatrices
from harmonia.layers.linear import WeightFormat
from harmonia.models import load_decoder, open_model
from harmonia.models.decoder import Decoder
from harmonia.models.registry import ModelRegistry
from harmonia.models.tokenizer import load_tokenizer
from harmonia.train.checkpoint import AdapterToSave, ModelToSave
from tests.checkpoints import load_adapter, save_checkpoint
from tests.unit.engine.tiny import Reference
from tests.unit.models.paged import PagedRunner

TEXTS = ["What is the capital of France?", "  tabs\t\n\n12345 and naïve — 日本語 <|im_start|>user\nhi<|im_end|>"]
MESSAGES = [{"role": "user", "content": "Hi"}, {"role": "assistant", "content": "Hello"}]
TOLERANCE = 1e-3
"""Of logits up to 30, through 30 layers in another order of summation."""


@pytest.fixture(scope="module")
def source(smollm2):
    return open_model(smollm2).limited(128)


@pytest.fixture(scope="module")
def decoder(source):
    return load_decoder(source, WeightFormat(torch.float32, torch.device("cpu")))


@pytest.fixture(scope="module")
def registry(tmp_path_factory):
    folder = tmp_path_factory.mktemp("registry")
    yield ModelRegistry(folder)
    shutil.rmtree(folder)  # half a gigabyte


@pytest.fixture(scope="module")
def full(source, decoder, registry):
    return save_checkpoint(registry, "smollm2/full", ModelToSave(decoder, source))


@pytest.fixture(scope="module")
def reference(full):
    return AutoModelForCausalLM.from_pretrained(full).eval()


@pytest.fixture(scope="module")
def ids(source):
    return load_tokenizer(source).encode(TEXTS[0] + TEXTS[1], add_special=False)


def logits(model: PreTrainedModel | PeftModel, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def our_logits(decoder: Decoder, ids: list[int]) -> torch.Tensor:
    return PagedRunner(decoder, 1, len(ids)).logits({0: ids})[0]


def random_adapter(decoder: Decoder) -> dict[str, LoraMatrices]:
    generator = torch.Generator().manual_seed(1)

    def matrix(rows: int, columns: int) -> torch.Tensor:
        return torch.randn(rows, columns, generator=generator) * 0.05

    return {
        f"model.layers.{target.layer}.{target.path}": LoraMatrices(
            matrix(8, target.linear.num_in), matrix(target.linear.part(target.part).size, 8), 2.0
        )
        for target in decoder.linears()
    }


def test_the_model_in_transformers_and_here(full, reference, decoder, ids):
    expected = our_logits(decoder, ids)
    assert float((logits(reference, ids) - expected).abs().max()) <= TOLERANCE
    again = open_model(full)
    assert again.config.max_seq_len == 8192  # not that of the run which saved it
    assert torch.equal(our_logits(load_decoder(again.limited(128), decoder.fmt), ids), expected)


def test_its_tokenizer_there_and_here(full, source):
    theirs, ours, original = (
        AutoTokenizer.from_pretrained(full),
        load_tokenizer(open_model(full)),
        load_tokenizer(source),
    )
    for text in TEXTS:
        assert theirs(text)["input_ids"] == ours.encode(text, True) == original.encode(text, True)
    assert theirs.apply_chat_template(MESSAGES, tokenize=False) == original.chat_template.render(
        MESSAGES, add_generation_prompt=False
    )
    assert theirs.eos_token == "<|im_end|>"
    assert ours.eos_ids == original.eos_ids


def test_an_adapter_in_peft_and_here(registry, source, smollm2, decoder, reference, full, ids):
    adapter = random_adapter(decoder)
    folder = save_checkpoint(registry, "smollm2/adapter", AdapterToSave(adapter, str(smollm2), source))
    loaded = load_adapter(registry, "model_registry://smollm2/adapter", decoder, "smollm2", max_rank=8)
    bank = AdapterBank(
        (
            BankTarget(f"model.layers.{target.layer}.{target.path}", target.linear, target.part)
            for target in decoder.linears()
        ),
        max_adapters=1,
        num_rows=8,
        fmt=decoder.fmt,
    )
    expected = Reference(decoder).logits(tuple(ids), bank.load("adapter", loaded.matrices))
    assert float((expected - our_logits(decoder, ids)).abs().max()) > 1
    opened = PeftModel.from_pretrained(reference, folder)
    assert float((logits(opened, ids) - expected).abs().max()) <= TOLERANCE
    assert AutoTokenizer.from_pretrained(folder)(TEXTS[0]) == AutoTokenizer.from_pretrained(full)(TEXTS[0])
