"""A tiny decoder with random weights and a plain reference that knows no cache."""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import msgspec
import torch
from safetensors.torch import save_file
from torch import Tensor

from harmonia.engine.engine import Engine
from harmonia.engine.requests import SequenceOutput
from harmonia.kernels.attention import dense_attention
from harmonia.kernels.heads import rotated_heads
from harmonia.kernels.lora import LoraBatch, LoraSegment
from harmonia.kernels.projection import Heads
from harmonia.layers.forward import Forward
from harmonia.layers.linear import WeightFormat
from harmonia.layers.rope_config import RopeConfig
from harmonia.models.config import ModelConfig
from harmonia.models.decoder import Decoder
from harmonia.models.families import build_decoder

FMT = WeightFormat(torch.float32, torch.device("cpu"))
VOCAB = 64
MODEL = ModelConfig(
    family="llama",
    num_layers=2,
    hidden_size=32,
    num_heads=4,
    num_kv_heads=2,
    head_dim=16,
    intermediate_size=48,
    vocab_size=VOCAB,
    max_seq_len=96,
    norm_eps=1e-5,
    rope=RopeConfig(base=10_000.0),
    windows=(0, 0),
    attention_scale=0.25,
    tie_embeddings=False,
    eos_token_ids=(VOCAB - 1,),
)


def random_decoder() -> Decoder:
    """Random, but the same in every run."""
    torch.manual_seed(3)
    decoder = build_decoder(MODEL, FMT)
    for parameter in decoder.parameters():
        noise = torch.randn(parameter.shape) * (0.3 if len(parameter.shape) > 1 else 0.1)
        parameter.fill(0, noise + 1 if len(parameter.shape) == 1 else noise)
    return decoder


@dataclass(frozen=True)
class DenseAttention:
    """Attention of one whole sequence to itself."""

    def attend(
        self, layer: int, qkv_TF: Tensor, heads: Heads, positions_T: Tensor, *, scale: float, window: int
    ) -> Tensor:
        return dense_attention(*rotated_heads(qkv_TF, heads, positions_T), scale, window)


class Reference:
    """Runs a request alone, the whole sequence anew for each token."""

    def __init__(self, decoder: Decoder) -> None:
        self._decoder = decoder
        self.generate = lru_cache(maxsize=None)(self._generate)

    def logits(self, tokens: tuple[int, ...], adapter_slot: int | None = None) -> Tensor:
        """Scores after every token."""
        segments = () if adapter_slot is None else (LoraSegment(0, len(tokens), adapter_slot),)
        with torch.inference_mode():
            forward = Forward(torch.arange(len(tokens)), DenseAttention(), LoraBatch.of(segments))
            return self._decoder.logits(self._decoder(torch.tensor(tokens), forward))

    def _generate(self, prompt: tuple[int, ...], max_tokens: int, adapter_slot: int | None = None) -> list[int]:
        tokens = list(prompt)
        while len(tokens) - len(prompt) < max_tokens and (len(tokens) == len(prompt) or tokens[-1] != VOCAB - 1):
            tokens.append(int(self.logits(tuple(tokens), adapter_slot)[-1].argmax()))
        return tokens[len(prompt) :]


def drain(engine: Engine, max_steps: int = 2000) -> dict[int, list[SequenceOutput]]:
    """Step until nothing is left: outputs by sequence."""
    outputs: dict[int, list[SequenceOutput]] = {}
    for _ in range(max_steps):
        if not engine.has_work:
            return outputs
        for output in engine.step():
            outputs.setdefault(output.seq_id, []).append(output)
    raise AssertionError("the engine does not come to an end")


def write_adapter(folder: Path, decoder: Decoder, *, rank: int, alpha: float, targets: list[str], seed: int) -> str:
    """A random adapter in PEFT's format for a decoder."""
    generator = torch.Generator().manual_seed(seed)
    tensors = {}
    for target in decoder.linears():
        if target.path.split(".")[-1] in targets:
            name = f"base_model.model.model.layers.{target.layer}.{target.path}"
            num_out = target.linear.part(target.part).size
            tensors[f"{name}.lora_A.weight"] = torch.randn(rank, target.linear.num_in, generator=generator) * 0.3
            tensors[f"{name}.lora_B.weight"] = torch.randn(num_out, rank, generator=generator) * 0.3
    folder.mkdir(parents=True, exist_ok=True)
    save_file(tensors, str(folder / "adapter_model.safetensors"))
    config = {"peft_type": "LORA", "r": rank, "lora_alpha": alpha, "target_modules": targets}
    (folder / "adapter_config.json").write_bytes(msgspec.json.encode(config))
    return str(folder)
