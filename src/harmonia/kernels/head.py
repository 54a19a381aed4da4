"""From hidden states to token log-probabilities and back, a chunk of rows at a time: never [tokens, vocabulary].

Shapes: C rows of a chunk, E features, V vocabulary.
"""

from __future__ import annotations

import torch
from torch import Tensor

from harmonia.kernels.divergence import Divergences, divergences_to_gradient
from harmonia.kernels.logprobs import entropies, logits_to_gradient, summed_logprobs
from harmonia.kernels.matmul import matmul
from harmonia.kernels.matmul_grad import add_weight_grad, input_grad, is_fast
from harmonia.kernels.weight import DenseWeight, Weight
from harmonia.protocol.losses import Divergence

_CPU_BYTES = 64 << 20
_DEVICE_BYTES = 1280 << 20
_DEVICE_ROWS = range(512, 2049)
_DEVICE_TILES = 128 * 128 * 256  # rows times features: enough tiles of 128 x 256 for the processors of an H100
_TILE_ROWS = 128
_MIN_ROWS = 16  # fewer would read a large head too often


def head_rows(vocab_size: int, num_features: int, device: torch.device) -> int:
    """Rows of a chunk: at least 16, and otherwise at most 64 MiB of fp32 logits on a CPU, 1280 MiB elsewhere.

    There it is the fewest that keep the product with the features' gradient busy: 1024 for Qwen3-8B, 5 ms on an H100.
    """
    if device.type == "cpu":
        return max(_MIN_ROWS, _CPU_BYTES // (4 * vocab_size))
    rows = min(max(_DEVICE_TILES // num_features, _DEVICE_ROWS[0]), _DEVICE_ROWS[-1], _DEVICE_BYTES // (4 * vocab_size))
    return max(_MIN_ROWS, rows // _TILE_ROWS * _TILE_ROWS)


def logit_bytes(dtype: torch.dtype, device: torch.device) -> int:
    """Most that a chunk holds per logit with hidden states of this type: fp32, and a half or a copy beside it."""
    if dtype is torch.float32:
        return 4
    return 4 if device.type == "cuda" else 6


def head_logits(hidden_CE: Tensor, head: Weight, softcap: float | None) -> Tensor:
    """fp32 scores of every next token: logits_CV. `softcap` bends them into (-softcap, softcap)."""
    logits_CV = matmul(hidden_CE, head, out_dtype=torch.float32)
    return logits_CV if softcap is None else logits_CV.div_(softcap).tanh_().mul_(softcap)


class HeadChunk:
    """Some rows between forward and backward; holds their logits in fp32. Made by `forward`, outside of autograd."""

    def __init__(
        self, hidden_CE: Tensor, head: Weight, targets_C: Tensor, softcap: float | None, logits_CV: Tensor
    ) -> None:
        self._hidden_CE = hidden_CE
        self._head = head
        self._targets_C = targets_C
        self._softcap = softcap
        self._logits_CV: Tensor | None = logits_CV
        self._log_sum_C, self.logprobs_C = summed_logprobs(logits_CV, targets_C)
        self._entropy_C: Tensor | None = None

    @staticmethod
    @torch.no_grad()
    def forward(hidden_CE: Tensor, head: Weight, targets_C: Tensor, softcap: float | None = None) -> HeadChunk:
        """Log-probabilities of one token per row."""
        logits_CV = head_logits(hidden_CE, head, softcap)
        return HeadChunk(hidden_CE, head, targets_C, softcap, logits_CV)

    @property
    def entropy_C(self) -> Tensor:
        """Entropy of each row's distribution, in nats; ask before `backward`."""
        if self._entropy_C is None:
            with torch.no_grad():
                self._entropy_C = entropies(self._logits(), self._log_sum_C)
        return self._entropy_C

    @torch.no_grad()
    def backward(self, dlogprobs_C: Tensor) -> Tensor:
        """dhidden_CE in the type of the hidden states; the gradient of a trained head is added to its leaf's.

        The logits become their gradient in place, so this ends the chunk.
        """
        hidden_CE, head = self._hidden_CE, self._head
        logits_CV = self._logits()
        self._logits_CV = None
        targets_C, log_sum_C = self._targets_C, self._log_sum_C
        dlogits_CV = logits_to_gradient(
            logits_CV, targets_C, log_sum_C, dlogprobs_C.float(), self._softcap, dtype=hidden_CE.dtype
        )
        return _through_head(hidden_CE, dlogits_CV, head)

    def _logits(self) -> Tensor:
        assert self._logits_CV is not None, "a chunk goes backward once, and its entropy is asked for before"
        return self._logits_CV


@torch.no_grad()
def distilled_rows(
    hidden_CE: Tensor,
    head: Weight,
    teacher_logits_CV: Tensor,
    weights_C: Tensor,
    divergence: Divergence,
    softcap: float | None = None,
) -> tuple[Tensor, Divergences]:
    """Rows forward and backward at once: (dhidden_CE of the sum of weight * divergence, what each row is worth).

    The gradient of a trained head is added to its leaf's. Both chunks of logits are held at the same time.
    """
    logits_CV = head_logits(hidden_CE, head, softcap)
    dlogits_CV, worth = divergences_to_gradient(
        logits_CV, teacher_logits_CV, weights_C, divergence, softcap, dtype=hidden_CE.dtype
    )
    return _through_head(hidden_CE, dlogits_CV, head), worth


def _through_head(hidden_CE: Tensor, dlogits_CV: Tensor, head: Weight) -> Tensor:
    """dhidden_CE; what the head learns is added to its leaf's gradient."""
    fast = is_fast(hidden_CE, "auto")
    if isinstance(head, DenseWeight) and head.leaf is not None:
        add_weight_grad(hidden_CE, dlogits_CV, head, fast=fast)
    return input_grad(dlogits_CV, head, fast=fast)
