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
    data = np.ascontiguousarray(tokens).tobytes()
    stride = block_size * tokens.itemsize
    for index in range(len(chain), len(tokens) // block_size):
        parent = chain[-1] if chain else root
        key = blake2b(parent, digest_size=_DIGEST_BYTES)
        key.update(data[index * stride : (index + 1) * stride])
        chain.append(key.digest())
