"""Keys of cache blocks: a hash chain over everything that decides a block's content.

The key of a block covers its parent's key and its tokens; the root covers the backbone, its version, the adapter and
the adapter's version. So a block of other weights never matches, and nobody can be handed another prefix's block: the
digest is cryptographic because prompts come from strangers.
"""

from __future__ import annotations

from hashlib import blake2b

import numpy as np

_DIGEST_BYTES = 16


def chain_root(*identity: str | int) -> bytes:
    """Root of the chains of one set of weights, such as (backbone, version, adapter, version)."""
    return blake2b("\x00".join(map(str, identity)).encode(), digest_size=_DIGEST_BYTES).digest()


def extend_chain(chain: list[bytes], root: bytes, tokens: np.ndarray, block_size: int) -> None:
    """Append to `chain` the keys of the full blocks of `tokens` (int32) that it does not cover yet."""
    covered, num_full = len(chain), len(tokens) // block_size
    if covered >= num_full:
        return
    data = np.ascontiguousarray(tokens[covered * block_size : num_full * block_size]).tobytes()
    stride = block_size * tokens.itemsize
    parent = chain[-1] if chain else root
    for start in range(0, len(data), stride):
        parent = blake2b(parent + data[start : start + stride], digest_size=_DIGEST_BYTES).digest()
        chain.append(parent)
