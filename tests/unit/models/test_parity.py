"""Every family and kind of position scaling gives the logits that transformers gives."""

import random

import pytest
import torch

from tests.unit.models.paged import PagedRunner
from tests.unit.models.tiny import CONFIGS, VOCAB, load, reference_model

TOLERANCE = 1e-4


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    model = reference_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, load(folder)


def tokens(count: int, seed: int) -> list[int]:
    return random.Random(seed).choices(range(VOCAB), k=count)


def expected(model, ids: list[int]) -> torch.Tensor:
    with torch.inference_mode():
        return model(torch.tensor([ids])).logits[0]


def difference(left: torch.Tensor, right: torch.Tensor) -> float:
    return float((left - right).abs().max())


def test_whole_prompt(pair):
    model, decoder = pair
    ids = tokens(60, seed=1)
    logits = PagedRunner(decoder, 1, 60).logits({0: ids})[0]
    assert difference(logits, expected(model, ids)) <= TOLERANCE


def test_chunks_and_decode(pair):
    model, decoder = pair
    ids = tokens(33, seed=2)
    runner = PagedRunner(decoder, 1, 40)
    pieces, start = [], 0
    for size in (9, 7, 5, 6, *[1] * 6):
        pieces.append(runner.logits({0: ids[start : start + size]})[0])
        start += size
    assert difference(torch.cat(pieces), expected(model, ids)) <= TOLERANCE


def test_mixed_batch(pair):
    model, decoder = pair
    prompts = {sequence: tokens(count, seed=3 + sequence) for sequence, count in enumerate((12, 30, 21, 5))}
    runner = PagedRunner(decoder, 4, 32)
    rows = {sequence: [] for sequence in prompts}
    # Each step a different mix of prompt chunks and single tokens.
    sizes = [{0: 4, 1: 11, 2: 1, 3: 4}, {0: 1, 1: 1, 2: 14, 3: 1}, {0: 6, 1: 17, 2: 5}, {0: 1, 1: 1, 2: 1}]
    for step in sizes:
        chunks = {s: prompts[s][runner.lengths[s] : runner.lengths[s] + count] for s, count in step.items()}
        for sequence, logits in runner.logits(chunks).items():
            rows[sequence].append(logits)
    for sequence, ids in prompts.items():
        assert difference(torch.cat(rows[sequence]), expected(model, ids)) <= TOLERANCE
