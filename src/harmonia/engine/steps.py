"""From a batch to hidden states: run operation by operation, or replayed from captured graphs.

A captured graph repeats the kernels of one decode step without the host's work of launching them, some 350 for a
model of 36 layers. There is one for each of a few batch sizes, and a batch runs on the next larger one, its other rows
being padding that no kernel writes for. Prompts, and what reads more than the next token, run operation by operation.
Shapes: T tokens, E features.
"""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor

from harmonia.engine.batch import Batch
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.graph_plan import captures, graph_sizes
from harmonia.engine.inputs import DeviceInputs, HostInputs, StepInputs
from harmonia.kernels import gpu
from harmonia.kernels.compiling import compile_together
from harmonia.kernels.feed import fed_ids
from harmonia.kernels.lora import LoraBatch
from harmonia.kernels.pages import PagedLayout
from harmonia.layers.forward import Forward, PagedAttention
from harmonia.protocol.instances import MAX_DRAFT_STEPS

_PROMPTS = (48, 320, 2040)
"""Tokens of prompts that do nothing but compile kernels: others take few, more and many of them. Without places in the
cache, which cuDNN reads from 2048 on."""


class CachedModel:
    """A decoder with its cache, and the ids that were sampled last: see `kept_places`."""

    def __init__(self, cached: CachedDecoder, last_ids: Tensor, vocab_size: int) -> None:
        """vocab_size: of the ids that come; those that the decoder does not have stand for its last one."""
        self.cached = cached
        self.decoder = cached.decoder
        self.last_ids = last_ids
        self._is_smaller = cached.decoder.config.vocab_size < vocab_size

    def __call__(
        self, inputs: StepInputs, layout: PagedLayout, adapters: LoraBatch | None, *, fed: bool = True
    ) -> Tensor:
        """Final-norm hidden states of every token: hidden_TE. `fed`: some ids are those that the last step sampled."""
        ids_T = fed_ids(inputs.token_ids_T, inputs.fed_slots_T, self.last_ids) if fed else inputs.token_ids_T.long()
        if self._is_smaller:
            ids_T = ids_T.clamp(max=self.decoder.config.vocab_size - 1)
        return self.decoder(ids_T, Forward(inputs.positions_T, PagedAttention(self.cached.caches, layout), adapters))

    def layout(self, inputs: StepInputs, batch: Batch | None, num_decodes: int) -> PagedLayout:
        """Where the tokens stand in the cache; without a batch, lengths are known to the device only."""
        return PagedLayout(
            slots_T=inputs.slots_T,
            blocks_B=inputs.blocks_B,
            block_starts_S=inputs.block_starts_S,
            context_lens_S=inputs.context_lens_S,
            query_starts_S1=inputs.query_starts_S1,
            query_lens=() if batch is None else tuple(row.count for row in batch.rows),
            context_lens=() if batch is None else tuple(batch.context_lens_S.tolist()),
            num_decodes=num_decodes,
            invariant=self.decoder.fmt.invariant,
        )


class PlainSteps:
    """Operation by operation, on a CPU."""

    def __init__(self, model: CachedModel) -> None:
        self._model = model
        self._inputs = HostInputs()

    sizes: tuple[int, ...] = ()
    """No graphs."""

    def prepare(self) -> None:
        """Nothing to do."""

    def prepare_adapters(self) -> None:
        """Nothing to do."""

    def run(self, batch: Batch) -> tuple[StepInputs, Tensor]:
        """The batch's integers, and hidden_TE."""
        inputs = self._inputs.put(batch)
        layout = self._model.layout(inputs, batch, batch.num_decodes)
        return inputs, self._model(inputs, layout, LoraBatch.of(batch.segments, inputs.adapter_slots_T))


class _Shape(NamedTuple):
    """What one graph is captured for."""

    num_rows: int
    adapted: bool
    """Some token uses an adapter."""


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    hidden_TE: Tensor


class GraphedSteps:
    """Decode steps as captured graphs, the others operation by operation."""

    def __init__(self, model: CachedModel) -> None:
        plan = model.cached.plan
        scheduler, config = plan.scheduler, plan.config
        assert scheduler.max_batch_tokens is not None, "the plan resolves it"
        self._model = model
        self._device = model.cached.device
        self._longest = min(scheduler.max_batch_tokens, plan.max_seq_len)
        max_blocks = -(-plan.max_seq_len // config.cache.block_size)
        max_rows = scheduler.max_running * (1 + MAX_DRAFT_STEPS)
        self._inputs = DeviceInputs(scheduler.max_batch_tokens, max_rows, max_blocks, self._device)
        capturable = captures(model.decoder.config, config, self._device.type) and gpu.has_triton()
        self._sizes = graph_sizes(scheduler.max_running) if capturable else []
        self._captured: dict[_Shape, _Captured] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._places, self._bank = model.cached.places, model.cached.adapters_generation

    @property
    def sizes(self) -> tuple[int, ...]:
        """Batch sizes that graphs are captured for."""
        return tuple(self._sizes)

    def prepare(self) -> None:
        """Compile what steps take, then capture every size: the largest first, for the others fit into its memory."""
        self._prepare(adapted=False)

    def prepare_adapters(self) -> None:
        """The same with adapters, as far as that was not done since the bank last moved."""
        self._prepare(adapted=True)

    @torch.inference_mode()
    def _prepare(self, *, adapted: bool) -> None:
        self._forget_moved()
        shapes = [_Shape(size, adapted) for size in reversed(self._sizes)]
        shapes = [shape for shape in shapes if shape not in self._captured]
        if not shapes:
            return

        def launch() -> None:
            for shape in shapes:
                self._decode(self._inputs.padded(shape.num_rows), shape, fed=False)
            self._run_prompts(adapted=adapted)

        compile_together(launch, self._device)
        for shape in shapes:
            self._graph(shape)
        self._run_prompts(adapted=adapted)

    def run(self, batch: Batch) -> tuple[StepInputs, Tensor]:
        """The batch's integers, and hidden_TE. What a graph returns holds until the next step."""
        shape = self._shape(batch)
        if shape is None:
            inputs = self._inputs.put(batch)
            layout = self._model.layout(inputs, batch, batch.num_decodes)
            return inputs, self._model(inputs, layout, LoraBatch.of(batch.segments, inputs.adapter_slots_T))
        captured = self._graph(shape)
        inputs = self._inputs.put(batch, shape.num_rows)
        captured.graph.replay()
        return inputs, captured.hidden_TE[: batch.num_tokens]

    def _shape(self, batch: Batch) -> _Shape | None:
        if not batch.is_decode:
            return None
        place = bisect.bisect_left(self._sizes, batch.num_tokens)
        return _Shape(self._sizes[place], bool(batch.segments)) if place < len(self._sizes) else None

    def _graph(self, shape: _Shape) -> _Captured:
        self._forget_moved()
        if shape not in self._captured:
            self._captured[shape] = self._capture(shape)
        return self._captured[shape]

    def _forget_moved(self) -> None:
        """Drop graphs that read what stands elsewhere by now."""
        cached = self._model.cached
        if self._places != cached.places:
            self._captured, self._pool, self._places = {}, None, cached.places
        if self._bank != cached.adapters_generation:
            self._captured = {shape: graph for shape, graph in self._captured.items() if not shape.adapted}
            self._pool, self._bank = self._pool if self._captured else None, cached.adapters_generation

    @torch.inference_mode()
    def _capture(self, shape: _Shape) -> _Captured:
        inputs = self._inputs.padded(shape.num_rows)
        if self._stream is None:  # one for all: the vendor's library keeps a workspace of 32 MiB for each
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._decode(inputs, shape)  # allocates workspaces, which a capture must not
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may load a model meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden_TE = self._decode(inputs, shape)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, hidden_TE)

    def _decode(self, inputs: StepInputs, shape: _Shape, *, fed: bool = True) -> Tensor:
        layout = self._model.layout(inputs, None, shape.num_rows)  # anew: it holds what the model derives from it
        return self._model(inputs, layout, _adapters(inputs, adapted=shape.adapted), fed=fed)

    def _run_prompts(self, *, adapted: bool) -> None:
        """Prompts of padding, for what steps take that are no decodes."""
        for size in sorted({min(size, self._longest) for size in _PROMPTS}):
            inputs = self._inputs.padded(size, 1)
            inputs.context_lens_S.fill_(size)
            inputs.query_starts_S1[1] = size
            layout = self._model.layout(inputs, None, 0)
            layout = replace(layout, query_lens=(size,), context_lens=(size,), num_decodes=0)
            self._model(inputs, layout, _adapters(inputs, adapted=adapted), fed=False)


def _adapters(inputs: StepInputs, *, adapted: bool) -> LoraBatch | None:
    """Whose adapters the tokens use only the device knows."""
    return LoraBatch((), inputs.adapter_slots_T) if adapted else None
