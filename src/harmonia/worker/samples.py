"""What clients train on and score, as the arrays that the device takes."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import numpy.typing as npt

from harmonia.engine.requests import SampleArrays, ScoreRequest
from harmonia.errors import InvalidRequestError
from harmonia.protocol.instances import SampleData, TargetSample, TokenSample
from harmonia.protocol.threads import ThreadData, TokenThreadData
from harmonia.threads.weights import token_weights
from harmonia.worker.threads import ThreadTokenizer, checked_turns, num_chars

Ints = npt.NDArray[np.int32]
What = Literal["logprobs", "scores", "last_score"]


@dataclass(frozen=True, eq=False)
class Sample:
    """Tokens with either a weight each or a target each."""

    token_ids: Ints
    weights: npt.NDArray[np.float32] | None = None
    targets: Ints | None = None

    def arrays(self) -> SampleArrays:
        """For training."""
        return SampleArrays(
            token_ids=self.token_ids.tobytes(),
            weights=b"" if self.weights is None else self.weights.tobytes(),
            targets=b"" if self.targets is None else self.targets.tobytes(),
        )

    def score(self, what: What) -> tuple[ScoreRequest, int]:
        """For scoring: what to read, and how many values are wanted. A token is judged by the state before it."""
        ids = self.token_ids
        last = np.array([len(ids) - 1], dtype="<i4")
        if what == "last_score":
            return ScoreRequest(rows=last.tobytes()), 1
        if self.targets is not None:
            rows, targets = np.arange(len(ids), dtype="<i4"), self.targets
        else:
            assert self.weights is not None
            weighted = np.flatnonzero(self.weights).astype("<i4")
            if len(weighted) and weighted[0] == 0:
                message = "position 0 has a weight, but no state predicts the first token; set its weight to 0"
                raise InvalidRequestError(message, field="weights")
            rows, targets = weighted - 1, ids[weighted]
        count = len(rows)
        if not count:  # an answer without values still tells the version
            rows, targets = last, ids[:1]
        return ScoreRequest(rows=rows.tobytes(), targets=targets.tobytes() if what == "logprobs" else b""), count


def sample_chars(data: SampleData) -> int:
    """Work that reading it makes, in characters to tokenize."""
    return num_chars(data) if isinstance(data, ThreadData) else len(data.token_ids)


def read_sample(data: SampleData, tokenizer: ThreadTokenizer, vocab_size: int) -> Sample:
    """A sample of any kind. Errors: InvalidRequestError naming the list and the value that is wrong."""
    if isinstance(data, TargetSample):
        ids, targets = _ids(data.token_ids, "token_ids", vocab_size), _ids(data.targets, "targets", vocab_size)
        if len(ids) != len(targets):
            raise InvalidRequestError(f"targets has {len(targets)} values for {len(ids)} tokens; give one per token")
        return Sample(ids, targets=targets)
    if isinstance(data, TokenSample):
        weights: Sequence[float] = data.weights
    else:
        if isinstance(data, TokenThreadData):
            checked_turns(data)
        else:
            data = tokenizer.tokenize(data)
        weights = token_weights(data)
    ids = _ids(data.token_ids, "token_ids", vocab_size)
    if len(weights) != len(ids):
        raise InvalidRequestError(f"weights has {len(weights)} values for {len(ids)} tokens; give one per token")
    return Sample(ids, weights=_weights(weights))


def _weights(values: Sequence[float]) -> npt.NDArray[np.float32]:
    weights = np.asarray(values, dtype=np.float64)
    bad = np.flatnonzero(~(np.abs(weights) <= np.finfo(np.float32).max))
    if len(bad):
        message = f"weights[{bad[0]}] is {weights[bad[0]]}; give finite 32-bit numbers"
        raise InvalidRequestError(message, field="weights")
    return weights.astype("<f4")


def _ids(values: Sequence[int], name: str, vocab_size: int) -> Ints:
    if not values:
        raise InvalidRequestError(f"{name} is empty; give at least one token", field=name)
    for worst in (min(values), max(values)):
        if not 0 <= worst < vocab_size:
            message = f"{name} must hold token ids from 0 to {vocab_size - 1}, got {worst}"
            raise InvalidRequestError(message, field=name)
    return np.asarray(values, dtype="<i4")
