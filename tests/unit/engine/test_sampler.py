"""Settings of requests find their rows, whichever rows a step has."""

from __future__ import annotations

import time

import pytest
import torch

from harmonia.engine.batch import Work
from harmonia.engine.requests import SequenceRequest, pack_ids
from harmonia.engine.sampler import Sampler
from harmonia.engine.sequence import Instance, Sequence
from harmonia.protocol.sampling import SamplingParams

VOCAB = 50
SETTINGS = [
    SamplingParams(temperature=0.0),
    SamplingParams(temperature=1.0, seed=1),
    SamplingParams(temperature=1.5, seed=2, top_k=3),
    SamplingParams(temperature=0.7, seed=3, top_p=0.5),
    SamplingParams(temperature=1.2, seed=4, min_p=0.2),
    SamplingParams(temperature=0.0, logit_bias={7: 100.0}),
]


def sequence(settings: SamplingParams) -> Sequence:
    request = SequenceRequest(
        seq_id=0, model="base", token_ids=pack_ids([1, 2]), sampling=settings, arrival_s=time.monotonic()
    )
    return Sequence.create(request, Instance("base", 0, b""), frozenset(), 64)


@pytest.mark.parametrize("drafts", [False, True])
def test_each_row_is_drawn_by_its_own_settings(drafts: bool) -> None:
    sampler = Sampler(VOCAB, torch.device("cpu"))
    sequences = [sequence(settings) for settings in SETTINGS]
    generator = torch.Generator().manual_seed(0)
    for step, places in enumerate([[0, 1, 2, 3], [0, 1, 2, 3], [3, 2, 1, 0], [5, 4], [4, 4, 4], [0, 5], [1, 5, 0, 2]]):
        rows = tuple(Work(sequences[place], 1 + step, 1, 0, True) for place in places)
        logits_RV = torch.randn(len(rows), VOCAB, generator=generator)
        together = sampler(logits_RV, rows, drafts=drafts).tolist()
        alone = [
            Sampler(VOCAB, torch.device("cpu"))(logits_RV[index : index + 1], (row,)).item()
            for index, row in enumerate(rows)
        ]
        assert together == alone
