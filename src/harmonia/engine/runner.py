"""Runs batches on the device: forward pass, sampling, log-probabilities.

Shapes: T tokens, R rows that sample, E features, V vocabulary, P tokens per block.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

from harmonia.engine.batch import Batch, Work
from harmonia.engine.requests import TokenScore, TopLogprob, unpack_ids
from harmonia.engine.sampler import Sampler
from harmonia.kernels.attention import LayerCache, PagedLayout
from harmonia.kernels.logprobs import token_logprobs, top_logprobs
from harmonia.layers.forward import Forward, PagedAttention
from harmonia.models.decoder import Decoder

_PROMPT_LOGPROB_ROWS = 64
"""Prompt positions scored at once; bounds the logits to 64 rows of the vocabulary."""
_SCORED_ROWS = 128
"""The same for `score` requests, which need no candidates."""


@dataclass(frozen=True, slots=True)
class Result:
    """What one step brought for one sequence."""

    work: Work
    token_id: int | None = None
    score: TokenScore | None = None
    embedding: bytes = b""
    prompt_scores: tuple[TokenScore, ...] = ()
    values: tuple[float, ...] = ()


@dataclass(frozen=True, slots=True)
class _Scores:
    """Log-probabilities of some rows, still on the device."""

    chosen: Tensor
    top_values: Tensor
    top_ids: Tensor
    num_top: tuple[int, ...]

    def read(self) -> list[TokenScore]:
        chosen, values, ids = self.chosen.tolist(), self.top_values.tolist(), self.top_ids.tolist()
        return [
            TokenScore(chosen[row], tuple(TopLogprob(ids[row][rank], values[row][rank]) for rank in range(count)))
            for row, count in enumerate(self.num_top)
        ]


@dataclass(frozen=True, slots=True)
class Launched:
    """A step on its way; `read` waits for the device and brings the results to the host."""

    batch: Batch
    generating: tuple[Work, ...]
    ids_R: Tensor
    scored: tuple[int, ...]
    """Rows of `generating` whose log-probability was asked for."""
    scores: _Scores | None
    prompt_scores: tuple[tuple[Work, _Scores], ...]
    embeddings: tuple[tuple[Work, Tensor], ...]
    values: tuple[tuple[Work, Tensor], ...]

    def read(self) -> list[Result]:
        """Results of every sequence that gained something."""
        prompt: dict[int, list[TokenScore]] = {}
        for work, scores in self.prompt_scores:
            prompt.setdefault(work.sequence.request.seq_id, []).extend(scores.read())
        scores_of = dict(zip(self.scored, self.scores.read(), strict=True)) if self.scores else {}
        results = [
            Result(work, token_id, scores_of.get(row), b"", tuple(prompt.pop(work.sequence.request.seq_id, ())))
            for row, (work, token_id) in enumerate(zip(self.generating, self.ids_R.tolist(), strict=True))
        ]
        results += [Result(work, embedding=row.numpy(force=True).tobytes()) for work, row in self.embeddings]
        results += [Result(work, values=tuple(values.tolist())) for work, values in self.values]
        by_id = {work.sequence.request.seq_id: work for work, _ in self.prompt_scores}
        return results + [Result(by_id[seq_id], prompt_scores=tuple(scores)) for seq_id, scores in prompt.items()]


class Runner:
    """One device: decoder, caches, and the last sampled id of every running slot."""

    def __init__(
        self, decoder: Decoder, caches: tuple[LayerCache, ...], *, max_running: int, device: torch.device
    ) -> None:
        self.decoder = decoder
        self._caches = caches
        self._device = device
        self._last_ids = torch.zeros(max_running, dtype=torch.int64, device=device)
        self._sampler = Sampler(decoder.config.vocab_size, device)

    @torch.inference_mode()
    def launch(self, batch: Batch) -> Launched:
        """Start a step; on a GPU this returns before the device is done."""
        hidden_TE = self.decoder(self._token_ids(batch), self._forward(batch))
        sampled = batch.sampled
        rows = batch.sample_rows_R
        generates = np.fromiter((work.sequence.request.generates for work in sampled), np.bool_, len(sampled))
        generating = tuple(work for work in sampled if work.sequence.request.generates)
        ids_R, scored, scores = self._sample(hidden_TE, rows[generates], generating)
        return Launched(
            batch=batch,
            generating=generating,
            ids_R=ids_R,
            scored=scored,
            scores=scores,
            prompt_scores=self._prompt_scores(hidden_TE, batch),
            embeddings=tuple(
                (work, F.normalize(hidden_TE[row].float(), dim=-1))
                for work, row in zip(sampled, rows.tolist(), strict=True)
                if work.sequence.request.embed
            ),
            values=tuple(self._values(hidden_TE, batch)),
        )

    def _token_ids(self, batch: Batch) -> Tensor:
        token_ids_T = self._to_device(batch.token_ids_T)
        if len(batch.fed_rows):
            fed = self._last_ids[self._to_device(batch.fed_slots)]
            token_ids_T.index_copy_(0, self._to_device(batch.fed_rows), fed)
        return token_ids_T

    def _forward(self, batch: Batch) -> Forward:
        layout = PagedLayout(
            slots_T=self._to_device(batch.slots_T),
            block_table_SM=self._to_device(batch.block_table_SM),
            context_lens_S=self._to_device(np.asarray(batch.context_lens, dtype=np.int32)),
            query_lens=batch.query_lens,
            context_lens=batch.context_lens,
            num_decodes=batch.num_decodes,
        )
        return Forward(self._to_device(batch.positions_T), PagedAttention(self._caches, layout), batch.segments)

    def _sample(
        self, hidden_TE: Tensor, rows_R: np.ndarray, generating: tuple[Work, ...]
    ) -> tuple[Tensor, tuple[int, ...], _Scores | None]:
        if not generating:
            return torch.empty(0, dtype=torch.int64), (), None
        logits_RV = self.decoder.logits(hidden_TE[self._to_device(rows_R)])
        ids_R = self._sampler(logits_RV, generating)
        slots = np.fromiter((work.sequence.slot for work in generating), np.int64, len(generating))
        self._last_ids[self._to_device(slots)] = ids_R
        scored = tuple(row for row, work in enumerate(generating) if work.sequence.sampling.logprobs is not None)
        if not scored:
            return ids_R, scored, None
        counts = tuple(generating[row].sequence.sampling.logprobs or 0 for row in scored)
        picked = torch.tensor(scored, device=self._device)
        return ids_R, scored, _score(logits_RV[picked], ids_R[picked], counts)

    def _prompt_scores(self, hidden_TE: Tensor, batch: Batch) -> tuple[tuple[Work, _Scores], ...]:
        """Scores of the prompt tokens that follow each position of this step."""
        scores = []
        end = 0
        for work in batch.work:
            first, end = end, end + work.count
            num_top = work.sequence.sampling.prompt_logprobs
            if num_top is None:
                continue
            stop = min(work.start + work.count, work.sequence.num_prompt - 1)
            for start in range(work.start, stop, _PROMPT_LOGPROB_ROWS):
                count = min(_PROMPT_LOGPROB_ROWS, stop - start)
                row = first + start - work.start
                logits_RV = self.decoder.logits(hidden_TE[row : row + count])
                targets = work.sequence.tokens[start + 1 : start + 1 + count].astype(np.int64)
                scores.append((work, _score(logits_RV, self._to_device(targets), (num_top,) * count)))
        return tuple(scores)

    def _values(self, hidden_TE: Tensor, batch: Batch) -> Iterator[tuple[Work, Tensor]]:
        """What `score` requests read in this step."""
        end = 0
        for work in batch.work:
            first, end = end, end + work.count
            score = work.sequence.request.score
            if score is None:
                continue
            all_rows = unpack_ids(score.rows)
            picked = slice(*np.searchsorted(all_rows, (work.start, work.start + work.count)))
            rows = self._to_device(all_rows[picked].astype(np.int64) + (first - work.start))
            head = work.sequence.instance.head
            if head is not None:
                yield work, head.scores(hidden_TE[rows])
                continue
            targets = self._to_device(unpack_ids(score.targets)[picked].astype(np.int64))
            parts = zip(rows.split(_SCORED_ROWS), targets.split(_SCORED_ROWS), strict=True)
            logprobs = [token_logprobs(self.decoder.logits(hidden_TE[part]), ids) for part, ids in parts]
            yield work, torch.cat(logprobs)

    def _to_device(self, array: np.ndarray) -> Tensor:
        return torch.from_numpy(np.ascontiguousarray(array)).to(self._device, non_blocking=True)


def _score(logits_RV: Tensor, ids_R: Tensor, num_top: tuple[int, ...]) -> _Scores:
    values, ids = top_logprobs(logits_RV, max(num_top))
    return _Scores(token_logprobs(logits_RV, ids_R), values, ids, num_top)
