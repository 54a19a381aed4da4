"""Layers against the plainest way to write the same thing."""

import pytest
import torch
from torch.nn import functional as F
from transformers.modeling_rope_utils import ROPE_INIT_FUNCTIONS
from transformers.models.llama import LlamaConfig
from transformers.models.llama.modeling_llama import LlamaRotaryEmbedding

from harmonia.kernels.lora import LoraBatch, LoraRows, LoraSegment
from harmonia.layers.embedding import Embedding
from harmonia.layers.linear import Linear, LoraPart, WeightFormat
from harmonia.layers.mlp import GatedMlp
from harmonia.layers.moe import SparseMoe
from harmonia.layers.norm import RmsNorm
from harmonia.layers.rope import Rope, attention_factor, inverse_frequencies
from harmonia.layers.rope_config import RopeConfig

CPU = torch.device("cpu")
FP32 = WeightFormat(torch.float32, CPU)
HEAD_DIM = 64
YARN = {"factor": 8.0, "original_max_position_embeddings": 4096}
LLAMA3 = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "original_max_position_embeddings": 8192}
ROPES = {
    "default": (RopeConfig(base=5e5), {"rope_type": "default", "rope_theta": 5e5}),
    "linear": (RopeConfig(kind="linear", factor=3.0), {"rope_type": "linear", "factor": 3.0}),
    "llama3": (
        RopeConfig(kind="llama3", base=5e5, factor=8.0, original_max_seq_len=8192),
        {"rope_type": "llama3", "rope_theta": 5e5, **LLAMA3},
    ),
    "yarn": (
        RopeConfig(kind="yarn", base=1e6, factor=8.0, original_max_seq_len=4096),
        {"rope_type": "yarn", "rope_theta": 1e6, **YARN},
    ),
    "yarn with scales": (
        RopeConfig(kind="yarn", factor=8.0, original_max_seq_len=4096, mscale=0.7, mscale_all_dim=1.2, truncate=False),
        {"rope_type": "yarn", **YARN, "mscale": 0.7, "mscale_all_dim": 1.2, "truncate": False},
    ),
    "yarn with ends": (
        RopeConfig(kind="yarn", factor=8.0, original_max_seq_len=4096, beta_fast=16, beta_slow=2, attention_factor=1.5),
        {"rope_type": "yarn", **YARN, "beta_fast": 16.0, "beta_slow": 2.0, "attention_factor": 1.5},
    ),
}


def filled(linear: Linear) -> Linear:
    for parameter in linear.parameters(""):
        parameter.fill(0, torch.randn(parameter.shape) * 0.1)
    return linear


@pytest.mark.parametrize("name", ROPES)
def test_frequencies_are_those_of_transformers(name):
    ours, parameters = ROPES[name]
    parameters = {"rope_theta": 1e4, **parameters}
    config = LlamaConfig(head_dim=HEAD_DIM, max_position_embeddings=32768, rope_parameters=parameters)
    if name == "default":
        freq_F, factor = LlamaRotaryEmbedding.compute_default_rope_parameters(config)
    else:
        freq_F, factor = ROPE_INIT_FUNCTIONS[parameters["rope_type"]](config)
    assert torch.allclose(inverse_frequencies(ours, HEAD_DIM), freq_F, rtol=2e-7, atol=0)
    assert attention_factor(ours) == pytest.approx(factor, rel=1e-12)


def test_rope_table_holds_cosines_then_sines():
    rope = Rope.create(RopeConfig(kind="yarn", factor=4.0, original_max_seq_len=16), 8, 20, CPU)
    angle_F = 7 * inverse_frequencies(RopeConfig(kind="yarn", factor=4.0, original_max_seq_len=16), 8)
    scale = attention_factor(RopeConfig(kind="yarn", factor=4.0))
    torch.testing.assert_close(rope.cos_sin_CD[7], torch.cat((angle_F.cos(), angle_F.sin())) * scale)


def test_divisors_divide_frequencies():
    divided = inverse_frequencies(RopeConfig(divisors=(1.0, 2.0, 4.0, 8.0)), 8)
    assert torch.equal(divided, inverse_frequencies(RopeConfig(), 8) / torch.tensor([1.0, 2.0, 4.0, 8.0]))


def test_linear_is_its_parts_side_by_side():
    torch.manual_seed(0)
    linear = Linear.create(16, {"q_proj": 8, "k_proj": 4}, FP32, bias=True)
    given = {parameter.name: torch.randn(parameter.shape) for parameter in linear.parameters("")}
    for parameter in linear.parameters(""):
        parameter.fill(0, given[parameter.name])
    x = torch.randn(5, 16)
    parts = [F.linear(x, given[f"{name}.weight"], given[f"{name}.bias"]) for name in ("q_proj", "k_proj")]
    torch.testing.assert_close(linear(x, None), torch.cat(parts, dim=1))


def test_adapters_change_only_their_tokens_and_parts():
    torch.manual_seed(0)
    linear = filled(Linear.create(16, {"q_proj": 8, "k_proj": 4}, FP32))
    x = torch.randn(5, 16)
    plain = linear(x, None)
    a, b = torch.randn(3, 16), torch.randn(3, 4)
    linear.lora["k_proj"] = LoraPart(a, b, [LoraRows(1, 2, 0.5)])
    changed = linear(x, LoraBatch((LoraSegment(1, 3, 0),)))
    expected = plain.clone()
    expected[1:3, 8:] += 0.5 * (x[1:3] @ a[1:].T) @ b[1:]
    torch.testing.assert_close(changed, expected)


def test_int8_weights_are_close():
    torch.manual_seed(0)
    rows = torch.randn(64, 128)
    int8 = Linear.create(128, {"q_proj": 64}, WeightFormat(torch.float32, CPU, int8=True))
    next(int8.parameters("")).fill(0, rows)
    x = torch.randn(3, 128)
    exact = x @ rows.T
    assert float((int8(x, None) - exact).abs().max()) < 0.02 * float(exact.abs().max())


def test_norm_adds_what_the_checkpoint_leaves_out():
    norm = RmsNorm.create(8, 1e-6, FP32, offset=1.0)
    next(norm.parameters("")).fill(0, torch.full((8,), 0.5))
    x, residual = torch.randn(3, 8), torch.randn(3, 8)
    total = x + residual
    expected = 1.5 * total / (total.square().mean(-1, keepdim=True) + 1e-6).sqrt()
    torch.testing.assert_close(norm.add(x, residual), (expected, total))
    torch.testing.assert_close(norm.add(total, None), (norm(total), total))


def test_embedding_scale_is_rounded_to_the_type_of_activations():
    fmt = WeightFormat(torch.bfloat16, CPU)
    embedding = Embedding.create(4, 8, fmt, scale=640**0.5)
    next(embedding.parameters("")).fill(0, torch.ones(4, 8))
    x_TE = embedding(torch.tensor([3, 1]))
    assert torch.equal(x_TE, torch.full((2, 8), 640**0.5).bfloat16())


@pytest.mark.parametrize("normalize", [True, False])
def test_mixture_is_the_weighted_sum_of_the_chosen(normalize):
    torch.manual_seed(0)
    router = filled(Linear.create(16, {"gate": 6}, FP32))
    experts = tuple(GatedMlp.create(16, 24, "silu", FP32) for _ in range(6))
    for expert in experts:
        filled(expert.gate_up)
        filled(expert.down)
    moe = SparseMoe(router, experts, 2, normalize)
    x = torch.randn(9, 16)
    probs = router(x, None).softmax(-1)
    expected = torch.zeros_like(x)
    for token in range(len(x)):
        weights, chosen = probs[token].topk(2)
        weights = weights / weights.sum() if normalize else weights
        for weight, expert in zip(weights, chosen, strict=True):
            expected[token] += weight * experts[int(expert)](x[token : token + 1], None)[0]
    torch.testing.assert_close(moe(x, None), expected)
    torch.testing.assert_close(moe(x[4:5], ()), expected[4:5])
