"""The one definition of a token's log-probability: natural, untempered, over the full vocabulary, in fp32.

Shapes: R rows, V vocabulary, N best candidates.
"""

from __future__ import annotations

import torch
from torch import Tensor


def token_logprobs(logits_RV: Tensor, ids_R: Tensor) -> Tensor:
    """Log-probability of one token per row: logprobs_R."""
    logits_RV = logits_RV.float()
    chosen_R = logits_RV.gather(1, ids_R[:, None])[:, 0]
    return chosen_R - torch.logsumexp(logits_RV, dim=-1)


def top_logprobs(logits_RV: Tensor, num_best: int) -> tuple[Tensor, Tensor]:
    """The most likely tokens of each row, best first: (logprobs_RN, ids_RN)."""
    logits_RV = logits_RV.float()
    values_RN, ids_RN = logits_RV.topk(num_best, dim=-1)
    return values_RN - torch.logsumexp(logits_RV, dim=-1, keepdim=True), ids_RN
