"""A micro-batch: samples of any instances on one backbone in one flat row, run in slices.

`run` is a generator that stops before each slice and names it: one layer of a teacher, one layer forward, one chunk of
the head, one layer again, one layer backward. Layers that are kept hold what their backward needs, all of it or without
what is cheap to compute again; the others hold only the sum that enters them and run again.
Gradients go to the leaves that the weights in training are: adapters' rows, scalar heads, or the whole backbone.
Shapes: T tokens of all samples, W rows that losses read, C rows of a chunk, E features.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.autograd.graph import GradientEdge, get_gradient_edge

from harmonia.kernels.again import keeping_less
from harmonia.kernels.head import HeadChunk, head_rows
from harmonia.kernels.lora import LoraSegment
from harmonia.layers.forward import Forward
from harmonia.models.decoder import Decoder
from harmonia.protocol.losses import Distillation, LanguageModelling, Tangents
from harmonia.train.distillation import Lesson, Teacher, lesson_key
from harmonia.train.losses import Evaluable, gradient
from harmonia.train.packing import Slice, chunks, packed_forward, packed_tokens, to_device
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
    """Called with the loss and the values of each side, both still on the device, when the gradient was added.
    Distillation has the sums of overlap and agreement over its rows in place of values."""
    teacher: Teacher | None = None
    """Of distillation."""

    @property
    def num_tokens(self) -> int:
        """Tokens that pass through the model."""
        return sum(len(side.token_ids_T) for side in self.sides)


@dataclass(slots=True, eq=False)
class _Layer:
    """What one layer's backward needs."""

    input_TE: Tensor | None = None
    """Of a layer that runs again."""
    outputs: tuple[GradientEdge | None, ...] = ()
    is_entered: bool = True
    """Something below the input is trained, so that its gradient is wanted."""
    gradient: list[Tensor] = field(default_factory=list)
    """That of the input, once known."""


class MicroBatch:
    """Items side by side. `num_kept` layers, the last ones, do not run again.

    Of these `num_whole`, the last ones, also hold what is cheap to compute again; None: all of them.
    """

    def __init__(self, decoder: Decoder, items: Sequence[Item], *, num_kept: int, num_whole: int | None = None) -> None:
        self._decoder = decoder
        self._first_kept = len(decoder.layers) - num_kept
        self._first_whole = len(decoder.layers) - (num_kept if num_whole is None else num_whole)
        self._items = sorted(items, key=lambda item: -1 if item.adapter_slot is None else item.adapter_slot)
        self._trains = any(item.loss is not None for item in items)
        self._device = decoder.fmt.device
        self._anchor = torch.zeros((), device=self._device, requires_grad=True)
        self._rows = _Rows.of(self._items, self._device)
        self._lessons = _lessons(self._rows.places)
        self._samples = [side for item in self._items for side in item.sides]
        self._num_tokens = sum(item.num_tokens for item in items)

    def run(self) -> Iterator[Slice]:
        """Do everything, yielding before each slice but the first; what comes after the last one is part of it."""
        for lesson in self._lessons:
            yield from lesson.read()
        decoder, layers = self._decoder, [_Layer() for _ in self._decoder.layers]
        forward = self._forward()
        embedded = _Layer()
        x_TE = self._embed(embedded)
        for index, layer in enumerate(decoder.layers):
            yield Slice("forward", self._num_tokens)
            state = layers[index]
            state.is_entered = index > 0 or bool(embedded.outputs)
            kept = self._trains and index >= self._first_kept
            if self._trains and not kept:
                state.input_TE = x_TE
            with keeping_less(index < self._first_whole):
                x_TE = self._run_layer(layer, state, x_TE, forward, with_graph=kept)
        final = _Layer()
        hidden_TE = self._finish(final, x_TE)
        del x_TE
        dhidden_TE = torch.zeros_like(hidden_TE) if self._trains else None
        yield from self._run_heads(hidden_TE, dhidden_TE)
        if dhidden_TE is None:
            return
        del hidden_TE
        gradient_TE = _backward(final, dhidden_TE)
        del dhidden_TE
        for index in reversed(range(len(layers))):
            state = layers.pop()
            if not state.outputs:
                assert state.input_TE is not None
                yield Slice("again", self._num_tokens)
                input_TE, state.input_TE = state.input_TE, None
                self._run_layer(decoder.layers[index], state, input_TE, forward, with_graph=True)
                del input_TE
            yield Slice("backward", self._num_tokens)
            gradient_TE = _backward(state, gradient_TE)
        if embedded.outputs:
            _backward(embedded, gradient_TE)

    # ------------------------------------------------------------------------------------------- the decoder

    def _forward(self) -> Forward:
        segments, start = list[LoraSegment](), 0
        for item in self._items:
            stop = start + item.num_tokens
            slot = item.adapter_slot
            if slot is not None and segments and segments[-1].slot == slot:
                start = segments.pop().start
            if slot is not None:
                segments.append(LoraSegment(start, stop, slot))
            start = stop
        return packed_forward(self._decoder, self._samples, segments)

    def _embed(self, state: _Layer) -> Tensor:
        with torch.set_grad_enabled(self._trains):
            x_TE = self._decoder.embed(packed_tokens(self._samples, self._device))
        if x_TE.requires_grad:
            state.outputs = (get_gradient_edge(x_TE),)
        return x_TE.detach()

    def _run_layer(
        self,
        layer: Callable[..., tuple[Tensor, Tensor]],
        state: _Layer,
        x_TE: Tensor,
        forward: Forward,
        *,
        with_graph: bool,
    ) -> Tensor:
        """The sum that enters the next layer. Kept as one tensor, not as the two that were added."""
        if not with_graph:
            with torch.no_grad():
                y_TE, residual_TE = layer(x_TE, None, forward)
                return y_TE + residual_TE
        with torch.enable_grad():
            y_TE, residual_TE = layer(self._enter(state, x_TE), None, forward)
        state.outputs = (_edge(y_TE), _edge(residual_TE))
        return y_TE.detach() + residual_TE.detach()

    def _finish(self, state: _Layer, x_TE: Tensor) -> Tensor:
        state.is_entered = self._trains
        with torch.set_grad_enabled(self._trains):
            hidden_TE = self._decoder.finish(self._enter(state, x_TE), None)
        state.outputs = (_edge(hidden_TE),)
        return hidden_TE.detach()

    def _enter(self, state: _Layer, x_TE: Tensor) -> Tensor:
        """The input as part of a graph that ends here and leaves its gradient in `state`."""
        if not state.is_entered:
            return x_TE
        entered_TE: Tensor = _Entry.apply(x_TE, self._anchor, state.gradient)  # type: ignore[no-untyped-call]
        return entered_TE

    # -------------------------------------------------------------------------------------- heads and losses

    def _run_heads(self, hidden_TE: Tensor, dhidden_TE: Tensor | None) -> Iterator[Slice]:
        rows = self._rows
        values_W = torch.empty(rows.num_rows, device=self._device)
        dvalues_W = torch.empty_like(values_W)
        config = self._decoder.config
        size = head_rows(config.vocab_size, config.hidden_size, self._device)
        # Where the derivative is known beforehand each chunk goes forward and backward at once.
        for part in chunks(0, rows.num_known, size):
            yield Slice("head", part.stop - part.start)
            chunk = self._read(hidden_TE, values_W, part)
            dvalues_W[part] = -rows.weights_W[part]
            self._write(chunk, dhidden_TE, dvalues_W, part)
        self._report_known(values_W)
        yield from self._teach(hidden_TE, dhidden_TE)
        parts = chunks(rows.num_taught, rows.num_language, size)
        held = list[HeadChunk]()
        for part in parts:
            yield Slice("head, forward", part.stop - part.start)
            held.append(self._read(hidden_TE, values_W, part))
            if len(parts) > 1:  # there is memory for one
                held.clear()
        for place in rows.places[rows.num_taught_places :]:
            self._evaluate(place, hidden_TE, dhidden_TE, values_W, dvalues_W)
        if dhidden_TE is None:
            return
        for part in parts:
            yield Slice("head, backward" if held else "head", part.stop - part.start)
            chunk = held.pop() if held else self._read(hidden_TE, values_W, part)
            self._write(chunk, dhidden_TE, dvalues_W, part)

    def _read(self, hidden_TE: Tensor, values_W: Tensor, part: slice) -> HeadChunk:
        decoder, rows = self._decoder, self._rows
        hidden_CE = hidden_TE[rows.rows_W[part]]
        chunk = HeadChunk.forward(hidden_CE, decoder.head_weight, rows.targets_W[part], decoder.config.logit_softcap)
        values_W[part] = chunk.logprobs_C
        return chunk

    def _write(self, chunk: HeadChunk, dhidden_TE: Tensor | None, dvalues_W: Tensor, part: slice) -> None:
        if dhidden_TE is not None:  # each row is read by one loss
            dhidden_TE.index_copy_(0, self._rows.rows_W[part], chunk.backward(dvalues_W[part]))

    def _teach(self, hidden_TE: Tensor, dhidden_TE: Tensor | None) -> Iterator[Slice]:
        """The rows that learn from teachers, forward and backward at once."""
        if not self._lessons:
            return
        assert dhidden_TE is not None, "what has a teacher trains"
        rows, worth = self._rows, list[Tensor]()
        for lesson in self._lessons:
            taught = rows.rows_W[lesson.span], rows.weights_W[lesson.span]
            worth.append((yield from lesson.teach(self._decoder, hidden_TE, dhidden_TE, *taught)))
        places = rows.places[rows.num_known_places : rows.num_taught_places]
        sums = self._sums(torch.cat(worth, 1).T, places).unbind()
        for place, (loss, overlap, agreement) in zip(places, sums, strict=True):
            place.item.report(loss, (overlap, agreement))

    def _report_known(self, values_W: Tensor) -> None:
        rows = self._rows
        places = rows.places[: rows.num_known_places]
        if places:
            losses = self._sums(rows.weights_W[: rows.num_known] * -values_W[: rows.num_known].double(), places)
            for place, loss in zip(places, losses.unbind(), strict=True):
                place.item.report(loss, tuple(values_W[span] for span in place.spans))

    def _sums(self, values: Tensor, places: Sequence[_Place]) -> Tensor:
        """By item, of what stands in its rows: all in a few steps, there may be hundreds."""
        lengths = to_device(np.array([place.spans[-1].stop - place.spans[0].start for place in places]), self._device)
        return torch.segment_reduce(values.double().contiguous(), "sum", lengths=lengths, unsafe=True).float()

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
                dhidden_TE.index_copy_(0, rows_W, item.head.backward(hidden_TE[rows_W], derivative_W))
        item.report(loss, values)


@dataclass(frozen=True, slots=True)
class _Place:
    """Where one item's values stand among the W rows."""

    item: Item
    spans: tuple[slice, ...]


@dataclass(frozen=True, slots=True)
class _Rows:
    """The rows that losses read: first those whose derivative is known, then those that learn from a teacher, then
    other log-probabilities, then scores."""

    places: tuple[_Place, ...]
    rows_W: Tensor
    targets_W: Tensor
    weights_W: Tensor
    num_known_places: int
    """The first so many are those of items whose derivative is known."""
    num_taught_places: int
    """The first so many are those, or learn from a teacher."""
    num_known: int
    """The first so many rows have a known derivative."""
    num_taught: int
    """The first so many do, or learn from a teacher."""
    num_language: int
    """The first so many are of log-probabilities or distributions."""
    num_rows: int

    @staticmethod
    def of(items: Sequence[Item], device: torch.device) -> _Rows:
        starts = np.cumsum([0, *(len(side.token_ids_T) for item in items for side in item.sides)]).tolist()
        first_row = iter(starts)
        offsets = {id(item): tuple(next(first_row) for _ in item.sides) for item in items}
        places, rows, at, ends, num_places = [], list[tuple[np.ndarray, ...]](), 0, [], []
        for kind in range(4):
            for item in sorted((item for item in items if _kind(item) == kind), key=_order):
                spans = []
                for side, offset in zip(item.sides, offsets[id(item)], strict=True):
                    rows.append((side.rows_W + offset, side.targets_W, side.weights_W))
                    spans.append(slice(at, at + len(side.rows_W)))
                    at += len(side.rows_W)
                places.append(_Place(item, tuple(spans)))
            ends.append(at)
            num_places.append(len(places))
        parts = zip(*rows, strict=True)
        rows_W, targets_W, weights_W = (to_device(np.concatenate(part), device) for part in parts)
        return _Rows(tuple(places), rows_W, targets_W, weights_W, *num_places[:2], *ends)


def _kind(item: Item) -> int:
    if item.head is not None:
        return 3
    if item.teacher is not None:
        return 1
    return 0 if isinstance(item.loss, _KNOWN_GRADIENT) else 2


def _order(item: Item) -> tuple[int, int, str]:
    """What has the same teacher and the same divergence stands together."""
    if item.teacher is None:
        return 0, 0, ""
    assert isinstance(item.loss, Distillation), "only distillation has a teacher"
    return lesson_key(item.teacher, item.loss.divergence)


def _lessons(places: Sequence[_Place]) -> list[Lesson]:
    """What is distilled, in the order of its rows: each teacher reads all its samples at once."""
    lessons = []
    distilled = [place for place in places if place.item.teacher is not None]
    for _, group in groupby(distilled, key=lambda place: _order(place.item)):
        found = list(group)
        item, samples = found[0].item, tuple(side for place in found for side in place.item.sides)
        assert item.teacher is not None
        assert isinstance(item.loss, Distillation), "only distillation has a teacher"
        span = slice(found[0].spans[0].start, found[-1].spans[-1].stop)
        lessons.append(Lesson(item.teacher, item.loss.divergence, samples, span))
    return lessons


class _Entry(torch.autograd.Function):
    """Identity where a layer's graph begins: it keeps no tensor, and its backward hands the gradient over."""

    @staticmethod
    def forward(ctx: Any, x_TE: Tensor, anchor: Tensor, holder: list[Tensor]) -> Tensor:
        ctx.holder = holder
        return x_TE.view_as(x_TE)

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[None, None, None]:
        ctx.holder.append(gradients[0])
        return None, None, None


def _edge(tensor: Tensor) -> GradientEdge | None:
    return get_gradient_edge(tensor) if tensor.requires_grad else None


def _backward(state: _Layer, gradient_TE: Tensor | None) -> Tensor | None:
    """From the gradient of a layer's outputs, whose sum is what counts, to that of its input; leaves add theirs up."""
    edges = [edge for edge in state.outputs if edge is not None]
    state.outputs = ()
    if edges and gradient_TE is not None:
        with torch.autograd.set_multithreading_enabled(False):  # a thread would be woken for each layer
            torch.autograd.backward(edges, [gradient_TE] * len(edges))
    return state.gradient.pop() if state.gradient else None
