"""From the settings of many requests to the tensors of one sampling step.

Shapes: R rows that sample, V vocabulary.
"""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from harmonia.engine.batch import Work
from harmonia.engine.inputs import send
from harmonia.engine.sequence import COLDEST, Sequence
from harmonia.kernels.sample import Penalties, SamplingTensors, sample
from harmonia.kernels.splitmix import FACTORS, GOLDEN
from harmonia.protocol.sampling import SamplingParams

_GOLDEN = np.uint64(GOLDEN)
_FACTORS = (np.uint64(FACTORS[0]), np.uint64(FACTORS[1]))


class _Fixed(NamedTuple):
    """Settings that stay with a sequence from its first token to its last; see `SamplingTensors`."""

    sequences: list[Sequence]
    """Of each row."""
    temperature_R: Tensor | None
    top_k_R: Tensor | None
    top_p_R: Tensor | None
    min_p_R: Tensor | None


class Sampler:
    """Samples the rows of a batch, each by its own request's settings."""

    def __init__(self, vocab_size: int, device: torch.device) -> None:
        self._vocab_size = vocab_size
        self._device = device
        self._fixed: dict[bool, _Fixed] = {}
        """What was sent for the last rows of the target and of the draft: most steps have the same ones again."""

    def __call__(self, logits_RV: Tensor, rows: tuple[Work, ...], *, drafts: bool = False) -> Tensor:
        """Next token of each row: ids_R, on the device. A draft does without penalties, whose counts it would lack."""
        greedy = all(work.sequence.is_greedy for work in rows)
        return sample(logits_RV, SamplingTensors() if greedy else self._tensors(rows, drafts=drafts))

    def _tensors(self, rows: tuple[Work, ...], *, drafts: bool) -> SamplingTensors:
        sequences = [work.sequence for work in rows]
        params = [sequence.sampling for sequence in sequences]
        fixed = self._fixed.get(drafts)
        if fixed is None or fixed.sequences != sequences:
            fixed = self._fixed[drafts] = self._fix(sequences, params)
        random = fixed.temperature_R is not None
        return SamplingTensors(
            temperature_R=fixed.temperature_R,
            keys_R=self._keys(rows) if random else None,
            top_k_R=fixed.top_k_R,
            top_p_R=fixed.top_p_R,
            min_p_R=fixed.min_p_R,
            bias=self._bias(params),
            banned=self._banned(rows),
            penalties=None if drafts else self._penalties(rows),
            masks=self._masks(rows),
        )

    def _fix(self, sequences: list[Sequence], params: list[SamplingParams]) -> _Fixed:
        temperatures = [settings.temperature if settings.temperature >= COLDEST else 0.0 for settings in params]
        if not any(temperatures):
            return _Fixed(sequences, None, None, None, None)
        return _Fixed(
            sequences,
            temperature_R=self._floats(temperatures),
            top_k_R=self._top_k(params),
            top_p_R=self._optional([settings.top_p for settings in params], 1.0),
            min_p_R=self._optional([settings.min_p for settings in params], 0.0),
        )

    def _keys(self, rows: tuple[Work, ...]) -> Tensor:
        seeds = np.array([work.sequence.seed & 0xFFFFFFFFFFFFFFFF for work in rows], dtype=np.uint64)
        places = np.array([_num_generated(work) for work in rows], dtype=np.uint64)
        return self._put(draw_keys(seeds, places))

    def _top_k(self, params: list[SamplingParams]) -> Tensor | None:
        if not any(settings.top_k for settings in params):
            return None
        counts = [min(settings.top_k or self._vocab_size, self._vocab_size) for settings in params]
        return self._ints(counts)

    def _bias(self, params: list[SamplingParams]) -> tuple[Tensor, Tensor, Tensor] | None:
        entries = [
            (row, token, value) for row, settings in enumerate(params) for token, value in settings.logit_bias.items()
        ]
        if not entries:
            return None
        rows, ids, values = zip(*entries, strict=True)
        return self._ints(rows), self._ints(ids), self._floats(values)

    def _banned(self, rows: tuple[Work, ...]) -> tuple[Tensor, Tensor] | None:
        entries = [
            (row, token)
            for row, work in enumerate(rows)
            if _num_generated(work) < work.sequence.sampling.min_tokens
            for token in work.sequence.stop_ids
        ]
        if not entries:
            return None
        row_ids, ids = zip(*entries, strict=True)
        return self._ints(row_ids), self._ints(ids)

    def _penalties(self, rows: tuple[Work, ...]) -> Penalties | None:
        chosen = [row for row, work in enumerate(rows) if work.sequence.needs_history]
        if not chosen:
            return None
        # Up to the row's own token, be it a proposal.
        before = [(rows[row].sequence, rows[row].start + rows[row].count) for row in chosen]
        params = [sequence.sampling for sequence, _ in before]
        answers = [self._counts(item.tokens[item.num_prompt : stop]) for item, stop in before]
        everything = [self._counts(item.tokens[:stop]) for item, stop in before]
        return Penalties(
            rows_P=self._ints(chosen),
            answer_counts_PV=self._put(np.stack(answers).astype(np.float32)),
            seen_PV=self._put(np.stack(everything) > 0),
            repetition_P=self._floats([settings.repetition_penalty for settings in params]),
            presence_P=self._floats([settings.presence_penalty for settings in params]),
            frequency_P=self._floats([settings.frequency_penalty for settings in params]),
        )

    def _masks(self, rows: tuple[Work, ...]) -> tuple[Tensor, Tensor] | None:
        chosen = [row for row, work in enumerate(rows) if work.sequence.request.constrained]
        if not chosen:
            return None
        words = [np.frombuffer(rows[row].sequence.masks[_num_generated(rows[row])], dtype="<i4") for row in chosen]
        return self._ints(chosen), self._put(np.stack(words))

    def _counts(self, ids: np.ndarray) -> np.ndarray:
        return np.bincount(ids, minlength=self._vocab_size)

    def _optional(self, values: list[float], neutral: float) -> Tensor | None:
        return self._floats(values) if any(value != neutral for value in values) else None

    def _floats(self, values: list[float] | tuple[float, ...]) -> Tensor:
        return send(np.array(values, dtype=np.float32), self._device)

    def _ints(self, values: list[int] | tuple[int, ...]) -> Tensor:
        return send(np.array(values, dtype=np.int64), self._device)

    def _put(self, array: np.ndarray) -> Tensor:
        return send(array, self._device)


def draw_keys(seeds: np.ndarray, places: np.ndarray) -> np.ndarray:
    """A key of 64 random bits for each (seed, place), by the finalizer of SplitMix64."""
    with np.errstate(over="ignore"):
        keys: np.ndarray = _mix(_mix(seeds) + (places + np.uint64(1)) * _GOLDEN)
    return keys.view(np.int64)


def _mix(bits: np.ndarray) -> np.ndarray:
    bits = (bits ^ (bits >> np.uint64(30))) * _FACTORS[0]
    bits = (bits ^ (bits >> np.uint64(27))) * _FACTORS[1]
    mixed: np.ndarray = bits ^ (bits >> np.uint64(31))
    return mixed


def _num_generated(work: Work) -> int:
    """Generated tokens before the one that this work samples."""
    return work.start + work.count - work.sequence.num_prompt
