"""Distillation inside a micro-batch: the hidden states of teachers, then chunks of both heads side by side.

A teacher reads its students' samples in slices of its own, one layer each, without gradients. Of what it computes only
the states at rows that losses read are kept, until both heads turn them into logits, a chunk of rows at a time.
Shapes: T tokens of the samples, W rows that learn, C rows of a chunk, E features (of each model its own), V vocabulary.
"""

from __future__ import annotations

from collections.abc import Generator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from harmonia.kernels.divergence import divergences_to_gradient
from harmonia.kernels.head import distilled_rows, head_logits, head_rows
from harmonia.kernels.lora import LoraSegment
from harmonia.models.decoder import Decoder
from harmonia.protocol.losses import Divergence
from harmonia.train.footprint import head_row_bytes
from harmonia.train.packing import Slice, chunks, packed_forward, packed_tokens, to_device
from harmonia.train.samples import Sample


@dataclass(frozen=True, slots=True, eq=False)
class Teacher:
    """Weights that say what comes next; nothing changes them while a micro-batch reads them."""

    decoder: Decoder
    adapter_slot: int | None
    """Place of its adapter in the bank; None: the bare backbone."""


@dataclass(slots=True, eq=False)
class Lesson:
    """Rows of a micro-batch that learn from one teacher by one divergence."""

    teacher: Teacher
    divergence: Divergence
    samples: tuple[Sample, ...]
    span: slice
    """Of these samples' rows among those that losses of the micro-batch read."""
    states_WE: Tensor | None = None
    """What the teacher makes of these rows, between `read` and `teach`."""

    def read(self) -> Generator[Slice, None, None]:
        """Pass the samples through the teacher; yields before each slice."""
        decoder, slot = self.teacher.decoder, self.teacher.adapter_slot
        starts = np.cumsum([0, *(len(sample.token_ids_T) for sample in self.samples)])
        num_tokens = int(starts[-1])
        segments = () if slot is None else (LoraSegment(0, num_tokens, slot),)
        forward = packed_forward(decoder, self.samples, segments)
        rows = [sample.rows_W + start for sample, start in zip(self.samples, starts, strict=False)]
        rows_W = to_device(np.concatenate(rows), decoder.fmt.device)
        with torch.no_grad():
            x_TE = decoder.embed(packed_tokens(self.samples, decoder.fmt.device))
        for layer in decoder.layers:
            yield Slice("teacher", num_tokens)
            with torch.no_grad():
                y_TE, residual_TE = layer(x_TE, None, forward)
                x_TE = y_TE + residual_TE
                del y_TE, residual_TE
        with torch.no_grad():
            self.states_WE = decoder.finish(x_TE, None)[rows_W]

    def teach(
        self, student: Decoder, hidden_TE: Tensor, dhidden_TE: Tensor, rows_W: Tensor, weights_W: Tensor
    ) -> Generator[Slice, None, Tensor]:
        """Write the gradient of the student's states at `rows_W`; yields before each chunk.

        Returns weighted divergence, overlap, and agreement of each row: worth_3W.
        """
        decoder, states_WE = self.teacher.decoder, self.states_WE
        assert states_WE is not None, "the teacher reads before it teaches"
        self.states_WE = None
        worth_3W = torch.empty(3, len(rows_W), device=hidden_TE.device)
        for part in chunks(0, len(rows_W), chunk_rows(student, decoder, len(hidden_TE))):
            yield Slice("distillation", part.stop - part.start)
            with torch.no_grad():
                teacher_CV = head_logits(states_WE[part], decoder.head_weight, decoder.config.logit_softcap)
            dhidden_CE, worth = distilled_rows(
                hidden_TE[rows_W[part]],
                student.head_weight,
                teacher_CV,
                weights_W[part],
                self.divergence,
                student.config.logit_softcap,
            )
            del teacher_CV
            dhidden_TE.index_copy_(0, rows_W[part], dhidden_CE)
            worth_3W[:, part] = torch.stack((worth.value_R * weights_W[part], worth.overlap_R, worth.agrees_R))
        return worth_3W


def rehearse(student: Decoder, teacher: Teacher, num_tokens: int) -> None:
    """What a lesson of one long sample runs, but for the student's own products: nobody learns from it."""
    ids_T = np.zeros(max(2, num_tokens), dtype=np.int64)
    weights_T = np.ones(len(ids_T))
    weights_T[0] = 0  # no state predicts the first token
    sample = Sample.from_weighted(ids_T, weights_T)
    for _ in Lesson(teacher, "forward_kl", (sample,), slice(0, len(sample.rows_W))).read():
        pass
    logits_CV, teacher_CV = (
        torch.zeros(2, decoder.config.vocab_size, device=decoder.fmt.device) for decoder in (student, teacher.decoder)
    )
    weights_C = torch.ones(2, device=student.fmt.device)
    softcap = student.config.logit_softcap
    divergences_to_gradient(logits_CV, teacher_CV, weights_C, "forward_kl", softcap, dtype=student.fmt.dtype)


def chunk_rows(student: Decoder, teacher: Decoder, num_tokens: int) -> int:
    """Rows whose two logits take no more than a chunk of the student's alone, for which there is memory."""
    size = student.config.vocab_size, student.config.hidden_size
    row_bytes = head_row_bytes(student.config, student.fmt)
    planned_bytes = row_bytes * min(num_tokens, head_rows(*size, student.fmt.device))
    return max(1, planned_bytes // (row_bytes + head_row_bytes(teacher.config, teacher.fmt)))


def lesson_key(teacher: Teacher, divergence: Divergence) -> tuple[int, int, str]:
    """Equal for what one lesson holds."""
    return id(teacher.decoder), -1 if teacher.adapter_slot is None else teacher.adapter_slot, divergence
