"""Steps of a decoder built of our kernels alone, with random weights: what the engine could reach at most.

`python -m benchmarks.kernels` prints one JSON object a line: a step, then the operations that it is made of. Sizes are
those of SmolLM2-135M. Every layer has its own weights and cache, so that nothing stays in the processor's caches that
would not in a real model. Shapes: T tokens, E features, H query heads, G key/value heads, D head size.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from harmonia.kernels import native
from harmonia.kernels.activation import gated_activation
from harmonia.kernels.attention import LayerCache, PagedLayout, paged_attention, write_cache
from harmonia.kernels.matmul import DenseWeight, Int8Weight, Weight, matmul
from harmonia.kernels.native import Impl
from harmonia.kernels.norm import add_rms_norm
from harmonia.kernels.rope import apply_rope

LAYERS, HIDDEN, HEADS, KV_HEADS, HEAD_SIZE, INNER, VOCABULARY = 30, 576, 9, 3, 64, 1536, 49152
BLOCK = 16
PUBLISHED_TYPE = torch.bfloat16  # of the model's weights, which then count as fp32
QKV = (HEADS + 2 * KV_HEADS) * HEAD_SIZE


@dataclass(frozen=True)
class Layer:
    qkv: Weight
    out: Weight
    gate_up: Weight
    down: Weight
    norm_E: Tensor
    cache: LayerCache


@dataclass(frozen=True)
class Step:
    """A batch and the decoder that runs it."""

    layers: list[Layer]
    head: Weight
    table_CD: Tensor
    tokens: Tensor
    positions_T: Tensor
    layout: PagedLayout
    impl: Impl

    def __call__(self) -> Tensor:
        """Greedy tokens of the last position of each sequence."""
        x_TE, residual_TE = self.head.rows(self.tokens), torch.zeros(len(self.tokens), HIDDEN)
        for layer in self.layers:
            x_TE, residual_TE = self.layer(layer, x_TE, residual_TE)
        x_TE, _ = add_rms_norm(x_TE, residual_TE, self.layers[0].norm_E, 1e-5, self.impl)
        last_S = torch.tensor(self.layout.query_lens).cumsum(0) - 1
        return matmul(x_TE[last_S], self.head, impl=self.impl).argmax(-1)

    def layer(self, layer: Layer, x_TE: Tensor, residual_TE: Tensor) -> tuple[Tensor, Tensor]:
        x_TE, residual_TE = add_rms_norm(x_TE, residual_TE, layer.norm_E, 1e-5, self.impl)
        qkv_TXD = matmul(x_TE, layer.qkv, impl=self.impl).view(-1, HEADS + 2 * KV_HEADS, HEAD_SIZE)
        rotated_TXD = apply_rope(qkv_TXD[:, : HEADS + KV_HEADS], self.table_CD, self.positions_T, self.impl)
        q_THD, k_TGD = rotated_TXD[:, :HEADS], rotated_TXD[:, HEADS:]
        write_cache(k_TGD, qkv_TXD[:, HEADS + KV_HEADS :], layer.cache, self.layout.slots_T, self.impl)
        mixed_THD = paged_attention(q_THD, layer.cache, self.layout, HEAD_SIZE**-0.5, 0, self.impl)
        x_TE = matmul(mixed_THD.flatten(1), layer.out, impl=self.impl)
        x_TE, residual_TE = add_rms_norm(x_TE, residual_TE, layer.norm_E, 1e-5, self.impl)
        inner_TF = gated_activation(matmul(x_TE, layer.gate_up, impl=self.impl), "silu", self.impl)
        return matmul(inner_TF, layer.down, impl=self.impl), residual_TE


def random_weight(num_out: int, num_in: int, *, int8: bool) -> Weight:
    device = torch.device("cpu")
    weight: Weight = (
        Int8Weight.empty(num_out, num_in, device) if int8 else DenseWeight.empty(num_out, num_in, torch.float32, device)
    )
    weight.fill(0, (torch.randn(num_out, num_in) * num_in**-0.5).to(PUBLISHED_TYPE))
    return weight


def decoder(*, int8: bool, cache_tokens: int) -> tuple[list[Layer], Weight]:
    sizes = (QKV, HIDDEN), (HIDDEN, HIDDEN), (2 * INNER, HIDDEN), (HIDDEN, INNER)
    layers = []
    for _ in range(LAYERS):
        weights = [random_weight(*size, int8=int8) for size in sizes]
        keys, values = torch.randn(2, cache_tokens // BLOCK, BLOCK, KV_HEADS, HEAD_SIZE)
        layers.append(Layer(*weights, torch.ones(HIDDEN), LayerCache(keys, values)))
    return layers, random_weight(VOCABULARY, HIDDEN, int8=int8)


def step(layers: list[Layer], head: Weight, sequences: int, queries: int, context: int, impl: Impl) -> Step:
    """`queries` tokens of each sequence, the last ones of its `context`."""
    blocks = -(-context // BLOCK)
    table_SM = torch.randperm(sequences * blocks, dtype=torch.int32).view(sequences, blocks)
    positions = torch.arange(context - queries, context)
    slots_SQ = table_SM[:, positions // BLOCK].long() * BLOCK + positions % BLOCK
    layout = PagedLayout(
        slots_T=slots_SQ.flatten(),
        block_table_SM=table_SM,
        context_lens_S=torch.full((sequences,), context, dtype=torch.int32),
        query_lens=(queries,) * sequences,
        context_lens=(context,) * sequences,
        num_decodes=sequences if queries == 1 else 0,
    )
    tokens = torch.randint(0, VOCABULARY, (sequences * queries,))
    table_CD = torch.rand(context, HEAD_SIZE)
    return Step(layers, head, table_CD, tokens, positions.repeat(sequences), layout, impl)


def milliseconds(run: Callable[[], object], seconds: float) -> dict[str, float]:
    run()
    times, end = [], time.perf_counter() + seconds
    while len(times) < 3 or time.perf_counter() < end:
        start = time.perf_counter()
        run()
        times.append((time.perf_counter() - start) * 1e3)
    times.sort()
    return {"min_ms": round(times[0], 4), "median_ms": round(times[len(times) // 2], 4)}


def operations(made: Step) -> Iterator[tuple[str, Callable[[], object]]]:
    """Each operation of a step on every layer in turn."""
    layers, impl, positions_T, layout = made.layers, made.impl, made.positions_T, made.layout
    tokens = len(made.tokens)
    x_TE, inner_TF, gate_up_TF = torch.randn(tokens, HIDDEN), torch.randn(tokens, INNER), torch.randn(tokens, 2 * INNER)
    qkv_TXD = torch.randn(tokens, HEADS + 2 * KV_HEADS, HEAD_SIZE)
    q_THD, k_TGD, v_TGD = qkv_TXD.split((HEADS, KV_HEADS, KV_HEADS), dim=1)
    yield "norm", lambda: [add_rms_norm(x_TE, x_TE, layer.norm_E, 1e-5, impl) for layer in layers]
    yield "rope", lambda: [apply_rope(qkv_TXD[:, :-KV_HEADS], made.table_CD, positions_T, impl) for _ in layers]
    yield "write", lambda: [write_cache(k_TGD, v_TGD, layer.cache, layout.slots_T, impl) for layer in layers]
    yield "attention", lambda: [paged_attention(q_THD, layer.cache, layout, 0.125, 0, impl) for layer in layers]
    yield "qkv", lambda: [matmul(x_TE, layer.qkv, impl=impl) for layer in layers]
    yield "out", lambda: [matmul(x_TE, layer.out, impl=impl) for layer in layers]
    yield "gate_up", lambda: [matmul(x_TE, layer.gate_up, impl=impl) for layer in layers]
    yield "activation", lambda: [gated_activation(gate_up_TF, "silu", impl) for _ in layers]
    yield "down", lambda: [matmul(inner_TF, layer.down, impl=impl) for layer in layers]


def main() -> None:
    """Measure every shape of the CPU table in DESIGN's anchors."""
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--precision", choices=("fp32", "int8"), nargs="+", default=["fp32", "int8"])
    parser.add_argument("--impl", choices=("native", "eager"), default="native")
    parser.add_argument("--sequences", type=int, nargs="+", default=[1, 8, 32])
    parser.add_argument("--context", type=int, default=192)
    parser.add_argument("--prefill", type=int, default=1024)
    parser.add_argument("--seconds", type=float, default=0.5)
    options = parser.parse_args()
    started = time.perf_counter()
    native.load_kernels()
    print(json.dumps({"load_s": round(time.perf_counter() - started, 2), "threads": torch.get_num_threads()}))
    for precision in options.precision:
        cached = max(max(options.sequences) * options.context, options.prefill) + BLOCK
        layers, head = decoder(int8=precision == "int8", cache_tokens=-(-cached // BLOCK) * BLOCK)
        for sequences in options.sequences:
            made = step(layers, head, sequences, 1, options.context, options.impl)
            record = milliseconds(made, options.seconds)
            rate = round(sequences / record["median_ms"] * 1e3, 1)
            print(json.dumps({"precision": precision, "n": sequences, **record, "tok_s": rate}), flush=True)
            parts = {name: milliseconds(run, options.seconds / 4)["min_ms"] for name, run in operations(made)}
            print(json.dumps({"n": sequences, "min_ms_of_all_layers": parts}), flush=True)
        if options.prefill:
            made = step(layers, head, 1, options.prefill, options.prefill, options.impl)
            record = milliseconds(made, options.seconds)
            rate = round(options.prefill / record["median_ms"] * 1e3, 1)
            print(json.dumps({"precision": precision, "prefill": options.prefill, **record, "tok_s": rate}), flush=True)


if __name__ == "__main__":
    with torch.inference_mode():
        main()
    sys.stdout.flush()
