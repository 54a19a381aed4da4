"""A tiny random Llama with a byte tokenizer and a chat template, as files; and an adapter for it."""

import shutil
from pathlib import Path

import torch
from peft import LoraConfig, PeftModel, get_peft_model
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from harmonia.models.adaptive_info import AdaptiveInfo, write_info

BEGIN, END = "<|im_start|>", "<|im_end|>"
TEMPLATE = (
    "{% if tools %}" + BEGIN + "system\n{{ tools | tojson }}" + END + "\n{% endif %}"
    "{% for message in messages %}" + BEGIN + "{{ message.role }}\n{{ message.content }}" + END + "\n{% endfor %}"
    "{% if add_generation_prompt %}" + BEGIN + "assistant\n{% endif %}"
)
VOCAB_SIZE = 258
MAX_LEN = 512


def _tokenizer() -> PreTrainedTokenizerFast:
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    tokenizer = Tokenizer(models.BPE(vocab={char: number for number, char in enumerate(alphabet)}, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([BEGIN, END])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, chat_template=TEMPLATE)


def _model() -> LlamaForCausalLM:
    torch.manual_seed(0)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=MAX_LEN,
        initializer_range=0.2,
        eos_token_id=VOCAB_SIZE - 1,
        bos_token_id=None,
    )
    return LlamaForCausalLM(config)


def make_model(folder: Path) -> Path:
    """Write the model."""
    _model().save_pretrained(folder)
    _tokenizer().save_pretrained(folder)
    return folder


def make_draft(folder: Path, model: Path, target: str, num_draft_steps: int | None = None, noise: float = 0.0) -> Path:
    """Write a copy of a model as the draft of another, with somewhat other weights."""
    shutil.copytree(model, folder)
    if noise:
        weights = load_file(folder / "model.safetensors")
        generator = torch.Generator().manual_seed(7)
        moved = {name: value + noise * torch.randn(value.shape, generator=generator) for name, value in weights.items()}
        save_file(moved, folder / "model.safetensors", {"format": "pt"})
    info = AdaptiveInfo(kind="model", draft_target=target, num_draft_steps=num_draft_steps)
    write_info(folder, info)
    return folder


def make_adapter(folder: Path, seed: int = 1, strength: float = 0.3, base: Path | None = None) -> Path:
    """Write an adapter that changes the model's answers. base: where it says that the model is."""
    model = get_peft_model(_model(), LoraConfig(r=4, lora_alpha=32, target_modules=["q_proj", "v_proj", "down_proj"]))
    torch.manual_seed(seed)  # after the model, which sets its own
    for name, parameter in model.named_parameters():
        if "lora_B" in name:
            torch.nn.init.normal_(parameter, std=strength)
    model.save_pretrained(folder)
    if base is not None:
        write_info(folder, AdaptiveInfo(kind="adapter", base=str(base)))
    return folder


def make_merged_draft(folder: Path, model: Path, adapter: Path, num_draft_steps: int | None = None) -> Path:
    """Write a draft of an adapter that is always right: the model with the adapter's changes in its weights."""
    make_draft(folder, model, str(adapter), num_draft_steps)
    tuned = PeftModel.from_pretrained(LlamaForCausalLM.from_pretrained(model), adapter)
    tuned.merge_and_unload().save_pretrained(folder)
    return folder
