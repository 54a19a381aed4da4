"""Sampled ids that stay on the device, in one launch each. Shapes as in feed.py."""

from __future__ import annotations

import torch
import triton
import triton.language as tl
from torch import Tensor

_BLOCK = 256


def take_fed(token_ids_T: Tensor, fed_slots_T: Tensor, last_ids_S: Tensor) -> Tensor:
    """ids_T."""
    num_tokens = token_ids_T.shape[0]
    ids_T = torch.empty(num_tokens, dtype=torch.int64, device=token_ids_T.device)
    if num_tokens:
        grid = (triton.cdiv(num_tokens, _BLOCK),)
        _take_fed[grid](token_ids_T, fed_slots_T, last_ids_S, ids_T, num_tokens, _BLOCK)
    return ids_T


def put_ids(last_ids_S: Tensor, slots_R: Tensor, ids_R: Tensor) -> None:
    """last_ids_S[slots_R] = ids_R, where there is a slot."""
    num_rows = ids_R.shape[0]
    if num_rows:
        _put_ids[(triton.cdiv(num_rows, _BLOCK),)](last_ids_S, slots_R, ids_R, num_rows, _BLOCK)


@triton.jit(do_not_specialize=["num_tokens"])
def _take_fed(token_ids_ptr, fed_slots_ptr, last_ids_ptr, ids_ptr, num_tokens, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_tokens
    slot = tl.load(fed_slots_ptr + row, inside, -1)
    known = tl.load(token_ids_ptr + row, inside, 0).to(tl.int64)
    fed = tl.load(last_ids_ptr + slot, inside & (slot >= 0), 0)
    tl.store(ids_ptr + row, tl.where(slot >= 0, fed, known), inside)


@triton.jit(do_not_specialize=["num_rows"])
def _put_ids(last_ids_ptr, slots_ptr, ids_ptr, num_rows, BLOCK: tl.constexpr):
    row = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    inside = row < num_rows
    slot = tl.load(slots_ptr + row, inside, -1)
    tl.store(last_ids_ptr + slot, tl.load(ids_ptr + row, inside, 0), inside & (slot >= 0))
