"""A micro-batch: samples of any instances on one backbone in one flat row, run in slices.

`run` is a generator that yields after each slice: the embedding, one layer forward, one chunk of the head, one layer
backward. Layers that are kept hold what their backward needs; the others hold only their inputs and run again.
Gradients go to the leaves that the weights in training are: adapters' rows, scalar heads, or the whole backbone.
Shapes: T tokens of all samples, W rows that losses read, C rows of a chunk, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from harmonia.kernels.head import HeadChunk, head_rows
from harmonia.kernels.lora import LoraSegment
from harmonia.layers.forward import Forward, PackedAttention
from harmonia.models.decoder import Decoder
from harmonia.protocol.losses import LanguageModelling, Tangents
from harmonia.train.losses import Evaluable, gradient
from harmonia.train.samples import Sample
from harmonia.train.scalar_head import ScalarHead

_KNOWN_GRADIENT = (LanguageModelling, Tangents)
"""Losses whose derivative is minus the weight, whatever the log-probabilities are."""


@dataclass(frozen=True, eq=False)
class Item:
    """One training call: a sample, or the two of a pair."""

    sides: tuple[Sample, ...]
    loss: Evaluable | None
    """None: only the values are wanted."""
    adapter_slot: int | None
    head: ScalarHead | None
    """Where scores are read; None reads log-probabilities."""
    report: Callable[[Tensor, tuple[Tensor, ...]], None]
    """Called with the loss and the values of each side, both still on the device, when the gradient was added."""

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(len(side.token_ids_T) for side in self.sides)


@dataclass(slots=True, eq=False)
class _Layer:
    """What one layer's backward needs."""

    x_TE: Tensor | None = None
    residual_TE: Tensor | None = None
    """Inputs, of a layer that runs again."""
    outputs: tuple[GradientEdge | None, ...] = ()
    is_entered: bool = True
    """Something below the inputs is trained, so that their gradients are wanted."""
    inputs: list[Tensor | None] = field(default_factory=lambda: [None, None])
    """Gradients of the inputs, once known."""


class MicroBatch:
    """Items side by side. `num_kept` layers, the last ones, are not recomputed."""

    def __init__(self, decoder: Decoder, items: Sequence[Item], *, num_kept: int) -> None:
        self._decoder = decoder
        self._num_recomputed = len(decoder.layers) - num_kept
        self._items = sorted(items, key=lambda item: -1 if item.adapter_slot is None else item.adapter_slot)
        self._trains = any(item.loss is not None for item in items)
        self._device = decoder.fmt.device
        self._anchor = torch.zeros((), device=self._device, requires_grad=True)
        self._rows = _Rows.of(self._items, self._device)

    def run(self) -> Iterator[None]:
        """Do everything, yielding after each slice."""
        decoder, layers = self._decoder, [_Layer() for _ in self._decoder.layers]
        forward = self._forward()
        embedded = _Layer()
        x_TE, residual_TE = self._embed(embedded)
        yield
        for index, layer in enumerate(decoder.layers):
            kept = self._trains and index >= self._num_recomputed
            if self._trains and not kept:
                layers[index].x_TE, layers[index].residual_TE = x_TE, residual_TE
            layers[index].is_entered = index > 0 or bool(embedded.outputs)
            x_TE, residual_TE = self._run_layer(layer, layers[index], (x_TE, residual_TE), forward, with_graph=kept)
            yield
        final = _Layer()
        hidden_TE = self._finish(final, x_TE, residual_TE)
        del x_TE, residual_TE
        dhidden_TE = torch.zeros_like(hidden_TE) if self._trains else None
        yield from self._run_heads(hidden_TE, dhidden_TE)
        if dhidden_TE is None:
            return
        del hidden_TE
        gradients = _backward(final, (dhidden_TE,))
        del dhidden_TE
        for index in reversed(range(len(layers))):
            state = layers.pop()
            if not state.outputs:
                inputs, state.x_TE, state.residual_TE = (state.x_TE, state.residual_TE), None, None
                self._run_layer(decoder.layers[index], state, inputs, forward, with_graph=True)
                del inputs
            gradients = _backward(state, gradients)
            yield
        if embedded.outputs:
            _backward(embedded, gradients[:1])

    # ------------------------------------------------------------------------------------------- the decoder

    def _forward(self) -> Forward:
        lengths, segments, start = [], list[LoraSegment](), 0
        for item in self._items:
            stop = start + item.num_tokens
            lengths += [len(side.token_ids_T) for side in item.sides]
            slot = item.adapter_slot
            if slot is not None and segments and segments[-1].slot == slot:
                start = segments.pop().start
            if slot is not None:
                segments.append(LoraSegment(start, stop, slot))
            start = stop
        positions_T = np.concatenate([np.arange(length) for length in lengths])
        return Forward(self._to_device(positions_T), PackedAttention(tuple(lengths)), tuple(segments))

    def _embed(self, state: _Layer) -> tuple[Tensor, None]:
        token_ids_T = self._to_device(np.concatenate([side.token_ids_T for item in self._items for side in item.sides]))
        with torch.set_grad_enabled(self._trains):
            x_TE = self._decoder.embed(token_ids_T)
        if x_TE.requires_grad:
            state.outputs = (get_gradient_edge(x_TE),)
        return x_TE.detach(), None

    def _run_layer(
        self,
        layer: Callable[..., tuple[Tensor, Tensor]],
        state: _Layer,
        inputs: tuple[Tensor | None, Tensor | None],
        forward: Forward,
        *,
        with_graph: bool,
    ) -> tuple[Tensor, Tensor]:
        if not with_graph:
            with torch.no_grad():
                return layer(*inputs, forward)
        with torch.enable_grad():
            y_TE, residual_TE = layer(*self._enter(state, inputs), forward)
        state.outputs = (_edge(y_TE), _edge(residual_TE))
        return y_TE.detach(), residual_TE.detach()

    def _finish(self, state: _Layer, x_TE: Tensor, residual_TE: Tensor | None) -> Tensor:
        state.is_entered = self._trains
        with torch.set_grad_enabled(self._trains):
            hidden_TE = self._decoder.finish(*self._enter(state, (x_TE, residual_TE)))
        state.outputs = (_edge(hidden_TE),)
        return hidden_TE.detach()

    def _enter(self, state: _Layer, inputs: tuple[Tensor | None, Tensor | None]) -> tuple[Any, ...]:
        """The inputs as parts of a graph that ends here and leaves their gradients in `state`."""
        if not state.is_entered:
            return inputs
        return tuple(
            None if tensor is None else _enter(tensor, self._anchor, state.inputs, place)
            for place, tensor in enumerate(inputs)
        )

    # -------------------------------------------------------------------------------------- heads and losses

    def _run_heads(self, hidden_TE: Tensor, dhidden_TE: Tensor | None) -> Iterator[None]:
        rows = self._rows
        values_W = torch.empty(rows.num_rows, device=self._device)
        dvalues_W = torch.empty_like(values_W)
        size = head_rows(self._decoder.config.vocab_size, self._device)
        # Where the derivative is known beforehand each chunk goes forward and backward at once.
        for start in range(0, rows.num_known, size):
            stop = min(start + size, rows.num_known)
            chunk = self._read(hidden_TE, values_W, start, stop)
            dvalues_W[start:stop] = -rows.weights_W[start:stop]
            self._write(chunk, dhidden_TE, dvalues_W, start, stop)
            yield
        starts = range(rows.num_known, rows.num_language, size)
        chunks = [self._read(hidden_TE, values_W, start, min(start + size, rows.num_language)) for start in starts[:1]]
        for start in starts[1:]:
            yield
            self._read(hidden_TE, values_W, start, min(start + size, rows.num_language))
        for place in rows.places:
            self._evaluate(place, hidden_TE, dhidden_TE, values_W, dvalues_W)
        if dhidden_TE is None:
            return
        for start in starts:
            stop = min(start + size, rows.num_language)
            chunk = chunks[0] if len(starts) == 1 else self._read(hidden_TE, values_W, start, stop)
            self._write(chunk, dhidden_TE, dvalues_W, start, stop)
            yield

    def _read(self, hidden_TE: Tensor, values_W: Tensor, start: int, stop: int) -> HeadChunk:
        decoder, rows = self._decoder, self._rows
        chunk = HeadChunk.forward(
            hidden_TE[rows.rows_W[start:stop]],
            decoder.head_weight,
            rows.targets_W[start:stop],
            decoder.config.logit_softcap,
        )
        values_W[start:stop] = chunk.logprobs_C
        return chunk

    def _write(self, chunk: HeadChunk, dhidden_TE: Tensor | None, dvalues_W: Tensor, start: int, stop: int) -> None:
        if dhidden_TE is not None:
            dhidden_CE = chunk.backward(dvalues_W[start:stop])
            dhidden_TE.index_add_(0, self._rows.rows_W[start:stop], dhidden_CE)

    def _evaluate(
        self, place: _Place, hidden_TE: Tensor, dhidden_TE: Tensor | None, values_W: Tensor, dvalues_W: Tensor
    ) -> None:
        """Loss and derivatives of one item, once its values are there; scores are read here."""
        item, rows = place.item, self._rows
        if item.head is not None:
            for span in place.spans:
                values_W[span] = item.head.scores(hidden_TE[rows.rows_W[span]])
        values = tuple(values_W[span] for span in place.spans)
        if item.loss is None:
            item.report(torch.zeros((), device=self._device), values)
            return
        loss, derivatives = gradient(item.loss, values, tuple(rows.weights_W[span] for span in place.spans))
        for span, derivative_W in zip(place.spans, derivatives, strict=True):
            dvalues_W[span] = derivative_W
            if item.head is not None and dhidden_TE is not None:
                rows_W = rows.rows_W[span]
                dhidden_TE.index_add_(0, rows_W, item.head.backward(hidden_TE[rows_W], derivative_W))
        item.report(loss, values)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one item's values stand among the W rows."""

    item: Item
    spans: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that losses read: first those whose derivative is known, then other log-probabilities, then scores."""

    places: tuple[_Place, ...]
    rows_W: Tensor
    targets_W: Tensor
    weights_W: Tensor
    num_known: int
    """The first so many have a known derivative."""
    num_language: int
    """The first so many are log-probabilities."""
    num_rows: int

    @staticmethod
    def of(items: Sequence[Item], device: torch.device) -> _Rows:
        starts = np.cumsum([0, *(len(side.token_ids_T) for item in items for side in item.sides)]).tolist()
        first_row = iter(starts)
        offsets = {id(item): tuple(next(first_row) for _ in item.sides) for item in items}
        kinds = [_kind(item) for item in items]
        places, rows, at, ends = [], [], 0, []
        for kind in range(3):
            for item in (item for item, its in zip(items, kinds, strict=True) if its == kind):
                spans = []
                for side, offset in zip(item.sides, offsets[id(item)], strict=True):
                    rows.append((side.rows_W + offset, side.targets_W, side.weights_W))
                    spans.append(slice(at, at + len(side.rows_W)))
                    at += len(side.rows_W)
                places.append(_Place(item, tuple(spans)))
            ends.append(at)
        rows_W, targets_W, weights_W = (
            torch.from_numpy(np.concatenate(parts)).to(device) for parts in zip(*rows, strict=True)
        )
        return _Rows(tuple(places), rows_W, targets_W, weights_W, *ends)


def _kind(item: Item) -> int:
    if item.head is not None:
        return 2
    return 0 if isinstance(item.loss, _KNOWN_GRADIENT) else 1


class _Entry(torch.autograd.Function):
    """Identity where a layer's graph begins: it keeps no tensor, and its backward hands the gradient over."""

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, anchor: Tensor, holder: list[Tensor | None], place: int) -> Tensor:
        ctx.holder, ctx.place = holder, place
        return x_TE.view_as(x_TE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None, None]:
        ctx.holder[ctx.place] = gradients[0]
        return None, None, None, None


def _enter(x_TE: Tensor, anchor: Tensor, holder: list[Tensor | None], place: int) -> Tensor:
    entered_TE: Tensor = _Entry.apply(x_TE, anchor, holder, place)  # type: ignore[no-untyped-call]
    return entered_TE


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _backward(state: _Layer, gradients: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """From the gradients of a layer's outputs to those of its inputs; leaves add theirs up."""
    pairs = [
        (edge, grad)
        for edge, grad in zip(state.outputs, gradients, strict=True)
        if edge is not None and grad is not None
    ]
    state.outputs = ()
    if pairs:
        torch.autograd.backward([edge for edge, _ in pairs], [grad for _, grad in pairs])
    return tuple(state.inputs)
