"""Ids that stay on the device: what the GPU's kernels do is what the plain operations do."""

from __future__ import annotations

import pytest
import torch

from harmonia.kernels.feed import fed_ids, remember

pytest.importorskip("triton")
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


@pytest.mark.parametrize("num_tokens", [0, 1, 7, 300])
def test_known_and_fed_tokens(num_tokens: int) -> None:
    torch.manual_seed(0)
    last_ids_S = torch.randint(0, 150_000, (32,), device=DEVICE)
    token_ids_T = torch.randint(0, 150_000, (num_tokens,), dtype=torch.int32, device=DEVICE)
    fed_slots_T = torch.randint(-1, 32, (num_tokens,), dtype=torch.int32, device=DEVICE)
    ids_T = fed_ids(token_ids_T, fed_slots_T, last_ids_S, "triton")
    assert ids_T.dtype is torch.int64
    assert torch.equal(ids_T, fed_ids(token_ids_T, fed_slots_T, last_ids_S, "eager"))


@pytest.mark.parametrize("num_rows", [0, 1, 5, 300])
def test_ids_are_remembered_by_slot(num_rows: int) -> None:
    torch.manual_seed(1)
    slots_R = torch.randperm(512, device=DEVICE)[:num_rows].int()
    ids_R = torch.randint(0, 150_000, (num_rows,), device=DEVICE)
    found_S, expected_S = torch.full((512,), -7, device=DEVICE), torch.full((512,), -7, device=DEVICE)
    remember(found_S, slots_R, ids_R, "triton")
    remember(expected_S, slots_R, ids_R, "eager")
    assert torch.equal(found_S, expected_S)


def test_ids_of_padding_are_forgotten() -> None:
    slots_R = torch.tensor([3, -1, 0, -1, -1], dtype=torch.int32, device=DEVICE)
    found_S = torch.full((6,), -7, device=DEVICE)
    remember(found_S, slots_R, torch.arange(10, 15, device=DEVICE), "triton")
    assert found_S.tolist() == [12, -7, -7, 10, -7, -7]
