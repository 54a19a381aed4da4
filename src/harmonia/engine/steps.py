"""From a batch to hidden states: run operation by operation, or replayed from captured graphs.

A captured graph repeats the kernels of one step without the host's work of launching them, some 350 for a model of 36
layers. There is one for each of a few batch sizes, and a batch runs on the next larger one, its other rows being
padding that no kernel writes for. Graphs for single tokens split attention over long contexts; those for prompts take
decodes as prompts of one token. Many prompt tokens, which keep a GPU busy for longer than the host needs to launch
them, and decodes far into their context beside prompts run operation by operation.
Shapes: T tokens, E features.
"""

from __future__ import annotations

import bisect
from dataclasses import replace
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.engine.batch import Batch
from harmonia.engine.cached import CachedDecoder
from harmonia.engine.graph_plan import captures, draft_graph_sizes, draft_prompt_sizes, graph_sizes, prompt_sizes
from harmonia.engine.inputs import NUM_STAGES, DeviceInputs, HostInputs, Room, StepInputs, input_limits
from harmonia.engine.needs import sampled_rows
from harmonia.kernels import gpu
from harmonia.kernels.compiling import compile_together
from harmonia.kernels.feed import fed_ids, remember
from harmonia.kernels.lora import LoraBatch
from harmonia.kernels.pages import PagedLayout
from harmonia.kernels.sample import SamplingTensors, sample
from harmonia.layers.forward import Forward, PagedAttention
from harmonia.protocol.instances import MAX_DRAFT_STEPS

_PROMPTS = (48, 320, 2040)
"""Tokens of prompts that do nothing but compile kernels: others take few, more and many of them. Without places in the
cache, which cuDNN reads from 2048 on."""
_LONG_CONTEXT = 8192
"""Tokens of a decode's context from which on reading it in one go takes longer than launching a step: 90 us a layer."""


class CachedModel:
    """A decoder with its cache, and the ids that were sampled last: see `kept_places`."""

    def __init__(self, cached: CachedDecoder, last_ids: Tensor, vocab_size: int) -> None:
        """vocab_size: of the ids that come and go; those that the decoder does not have stand for its last one."""
        self.cached = cached
        self.decoder = cached.decoder
        self.last_ids = last_ids
        self._vocab_size = vocab_size
        self._is_smaller = cached.decoder.config.vocab_size < vocab_size

    def __call__(
        self, inputs: StepInputs, layout: PagedLayout, adapters: LoraBatch | None, *, fed: bool = True
    ) -> Tensor:
        """Final-norm hidden states of every token: hidden_TE. `fed`: some ids are those that the last step sampled."""
        ids_T = fed_ids(inputs.token_ids_T, inputs.fed_slots_T, self.last_ids) if fed else inputs.token_ids_T.long()
        if self._is_smaller:
            ids_T = ids_T.clamp(max=self.decoder.config.vocab_size - 1)
        return self.decoder(ids_T, Forward(inputs.positions_T, PagedAttention(self.cached.caches, layout), adapters))

    def logits(self, hidden_RE: Tensor) -> Tensor:
        """Of the ids that come and go: models of one tokenizer may pad its vocabulary to other sizes."""
        logits_RV = self.decoder.logits(hidden_RE)
        missing = self._vocab_size - logits_RV.shape[1]
        if missing > 0:
            return F.pad(logits_RV, (0, missing), value=-torch.inf)
        return logits_RV[:, : self._vocab_size].contiguous()

    def keep_likeliest(self, inputs: StepInputs, hidden_TE: Tensor) -> None:
        """Choose the likeliest next token of each row that samples, and keep it where it is fed from."""
        num_rows = self.cached.plan.scheduler.max_running  # there may be padding behind
        logits_RV = self.logits(hidden_TE.index_select(0, inputs.sample_rows_R[:num_rows]))
        remember(self.last_ids, inputs.sample_slots_R[:num_rows], sample(logits_RV, SamplingTensors()))

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

    def resize(self) -> None:
        """Nothing to do."""

    def prepare(self, *, adapted: bool = False) -> bool:
        """Nothing to do: False."""
        return False

    def run(self, batch: Batch) -> tuple[StepInputs, Tensor]:
        """The batch's integers, and hidden_TE."""
        inputs = self._inputs.put(batch)
        layout = self._model.layout(inputs, batch, batch.num_decodes)
        return inputs, self._model(inputs, layout, LoraBatch.of(batch.segments, inputs.adapter_slots_T))

    def propose(self, batch: Batch) -> None:
        """Run a batch, and keep the likeliest next token of each row that samples."""
        self._model.keep_likeliest(*self.run(batch))


class Shape(NamedTuple):
    """What one graph is captured for."""

    room: Room
    num_decodes: int
    """All of its rows or none."""
    adapted: bool
    """Some token uses an adapter."""
    proposes: bool = False
    """The likeliest next tokens are chosen and kept, too."""


class Shapes(NamedTuple):
    """Everything that graphs are captured for."""

    rows: tuple[int, ...] = ()
    """Numbers of single tokens."""
    prompts: tuple[int, ...] = ()
    """Numbers of tokens of steps with prompts."""
    max_sequences: int = 0
    """In a step with prompts."""
    proposes: bool = False
    """Single tokens come with proposals, too."""

    def all(self, *, adapted: bool) -> set[Shape]:
        """With adapters or without."""
        single = {self._single(size, adapted) for size in self.rows}
        proposing = {shape._replace(proposes=True) for shape in single if self.proposes}
        return single | proposing | {self._mixed(size, adapted) for size in self.prompts}

    def fit(self, batch: Batch) -> Shape | None:
        """What a batch is padded to; None: there is no graph for it."""
        adapted, size = bool(batch.segments), batch.num_tokens
        if batch.has_single_tokens and size <= max(self.rows, default=0):
            return self._single(_next(self.rows, size), adapted)
        if size > max(self.prompts, default=0):
            return None
        shape = self._mixed(_next(self.prompts, size), adapted)
        if len(batch.rows) > shape.room.num_sequences:
            return None
        return shape if max(batch.context_lens_S[: batch.num_decodes], default=0) <= _LONG_CONTEXT else None

    @staticmethod
    def _single(size: int, adapted: bool) -> Shape:
        return Shape(Room(size, size), size, adapted)

    def _mixed(self, size: int, adapted: bool) -> Shape:
        return Shape(Room(size, min(size, self.max_sequences)), 0, adapted)


class _Captured(NamedTuple):
    graph: torch.cuda.CUDAGraph
    hidden_TE: Tensor


class GraphedSteps:
    """Steps as captured graphs where there is one, the others operation by operation."""

    def __init__(self, model: CachedModel, *, is_draft: bool = False) -> None:
        """is_draft: all passes of a step are launched at once, behind the results of the step before."""
        plan = model.cached.plan
        scheduler, config = plan.scheduler, plan.config
        assert scheduler.max_batch_tokens is not None, "the plan resolves it"
        self._model = model
        self._is_draft = is_draft
        self._device = model.cached.device
        self._longest = min(scheduler.max_batch_tokens, plan.max_seq_len)
        limits = input_limits(scheduler, config.cache, plan.max_seq_len)
        num_stages = MAX_DRAFT_STEPS if is_draft else NUM_STAGES
        self._inputs = DeviceInputs(*limits, self._device, num_stages=num_stages)
        self._captures = captures(model.decoder.config, config, self._device.type) and gpu.has_triton()
        self._shapes = self._present_shapes()
        self._captured: dict[Shape, _Captured] = {}
        self._pool: Any = None
        self._stream: torch.cuda.Stream | None = None
        self._places, self._bank = model.cached.places, model.cached.adapters_generation

    def _present_shapes(self) -> Shapes:
        """By the plan: with proposals, which may come with an instance, a step has more rows than sequences."""
        plan = self._model.cached.plan
        if not self._captures:
            return Shapes()
        scheduler = plan.scheduler
        assert scheduler.max_batch_tokens is not None, "the plan resolves it"
        if self._is_draft:
            rows, prompts = draft_graph_sizes(scheduler.max_running), draft_prompt_sizes(scheduler.max_batch_tokens)
        else:
            rows, prompts = graph_sizes(sampled_rows(scheduler, plan.needs)), prompt_sizes(scheduler.max_batch_tokens)
        return Shapes(tuple(rows), tuple(prompts), scheduler.max_running, proposes=self._is_draft)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Numbers of single tokens that graphs are captured for."""
        return self._shapes.rows

    def resize(self) -> None:
        """Go by the present plan: instances that came or went change how many rows a step may have."""
        self._shapes = self._present_shapes()
        kept = self._shapes.all(adapted=False) | self._shapes.all(adapted=True)
        self._captured = {shape: graph for shape, graph in self._captured.items() if shape in kept}

    @torch.inference_mode()
    def prepare(self, *, adapted: bool = False) -> bool:
        """Compile what steps take, then capture every size: the largest first, for the others fit into its memory.

        adapted: with adapters, as far as that was not done since the bank last moved. Returns whether anything was new.
        """
        self._forget_moved()
        shapes = sorted(self._shapes.all(adapted=adapted) - set(self._captured), reverse=True)
        if not shapes:
            return False

        def launch() -> None:
            for shape in shapes:
                self._run(self._inputs.padded(shape.room), shape, fed=False)
            self._run_prompts(adapted=adapted)

        compile_together(launch, self._device)
        for shape in shapes:
            self._graph(shape)
        self._run_prompts(adapted=adapted)
        return True

    def run(self, batch: Batch) -> tuple[StepInputs, Tensor]:
        """The batch's integers, and hidden_TE. What a graph returns holds until the next step."""
        shape = self._shapes.fit(batch)
        if shape is None:
            inputs = self._inputs.put(batch)
            layout = self._model.layout(inputs, batch, batch.num_decodes)
            return inputs, self._model(inputs, layout, LoraBatch.of(batch.segments, inputs.adapter_slots_T))
        return self._replay(shape, batch)

    def propose(self, batch: Batch) -> None:
        """Run a batch, and keep the likeliest next token of each row that samples; in one graph for single tokens."""
        shape = self._shapes.fit(batch)
        if shape is None or not shape.num_decodes:
            self._model.keep_likeliest(*self.run(batch))
        else:
            self._replay(shape._replace(proposes=True), batch)

    def _replay(self, shape: Shape, batch: Batch) -> tuple[StepInputs, Tensor]:
        captured = self._graph(shape)
        inputs = self._inputs.put(batch, shape.room)
        captured.graph.replay()
        return inputs, captured.hidden_TE[: batch.num_tokens]

    def _graph(self, shape: Shape) -> _Captured:
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
    def _capture(self, shape: Shape) -> _Captured:
        inputs = self._inputs.padded(shape.room)
        if self._stream is None:  # one for all: the vendor's library keeps a workspace of 32 MiB for each
            self._stream = torch.cuda.Stream(self._device)
        self._stream.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(self._stream):
            self._run(inputs, shape)  # allocates workspaces, which a capture must not
        torch.cuda.current_stream().wait_stream(self._stream)
        graph = torch.cuda.CUDAGraph()
        # Another thread may load a model meanwhile.
        with torch.cuda.graph(graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"):
            hidden_TE = self._run(inputs, shape)
        self._pool = self._pool or graph.pool()
        return _Captured(graph, hidden_TE)

    def _run(self, inputs: StepInputs, shape: Shape, *, fed: bool = True) -> Tensor:
        layout = self._model.layout(inputs, None, shape.num_decodes)  # anew: it holds what the model derives from it
        hidden_TE = self._model(inputs, layout, _adapters(inputs, adapted=shape.adapted), fed=fed)
        if shape.proposes:
            self._model.keep_likeliest(inputs, hidden_TE)
        return hidden_TE

    def _run_prompts(self, *, adapted: bool) -> None:
        """Prompts of padding, for what steps take that are no decodes."""
        for size in sorted({min(size, self._longest) for size in _PROMPTS}):
            inputs = self._inputs.padded(Room(size, 1))
            inputs.context_lens_S.fill_(size)
            inputs.query_starts_S1[1] = size
            layout = self._model.layout(inputs, None, 0)
            layout = replace(layout, query_lens=(size,), context_lens=(size,), num_decodes=0)
            self._model(inputs, layout, _adapters(inputs, adapted=adapted), fed=False)


def _next(sizes: tuple[int, ...], size: int) -> int:
    return sizes[bisect.bisect_left(sizes, size)]


def _adapters(inputs: StepInputs, *, adapted: bool) -> LoraBatch | None:
    """Whose adapters the tokens use only the device knows."""
    return LoraBatch((), inputs.adapter_slots_T) if adapted else None
