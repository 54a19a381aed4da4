"""The block pool and the sessions against plain rules, under random use."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from harmonia.cache import BlockPool, SessionTable, chain_root, extend_chain

BLOCK = 4


def chain_of(tokens: list[int], root: bytes = b"root") -> list[bytes]:
    chain: list[bytes] = []
    extend_chain(chain, root, np.array(tokens, dtype=np.int32), BLOCK)
    return chain


def store(pool: BlockPool, chain: list[bytes]) -> list[int]:
    """What a sequence does that computes and publishes a whole chain, as far as it is not cached yet."""
    hits = pool.match(chain)
    pool.hold(hits)
    blocks = hits + pool.allocate(len(chain) - len(hits))
    for block, key in zip(blocks, chain, strict=True):
        pool.publish(block, key)
    return blocks


def test_a_chain_covers_full_blocks_and_its_past() -> None:
    assert len(chain_of([1] * 7)) == 1
    same = chain_of([1, 2, 3, 4, 5, 6, 7, 8])
    other = chain_of([0, 2, 3, 4, 5, 6, 7, 8])
    assert same[1] != other[1], "equal tokens after another prefix are another block"


def test_other_weights_never_match() -> None:
    tokens = list(range(8))
    assert chain_of(tokens, chain_root("m", 0)) != chain_of(tokens, chain_root("m", 1))
    assert chain_of(tokens, chain_root("m", 0, "a", 1)) != chain_of(tokens, chain_root("m", 0, "a", 2))


def test_released_blocks_are_found_again_until_evicted() -> None:
    pool = BlockPool(num_blocks=4, block_size=BLOCK)
    chain = chain_of(list(range(12)))
    blocks = store(pool, chain)
    pool.release(blocks)
    assert pool.num_available == 4
    assert pool.match(chain) == blocks
    pool.release(pool.allocate(2))
    assert pool.match(chain) == blocks[:2], "the tail goes before its parents"
    assert pool.num_evictions == 1


def test_private_blocks_are_free_at_once() -> None:
    pool = BlockPool(num_blocks=2, block_size=BLOCK)
    pool.release(pool.allocate(2))
    assert pool.num_available == 2
    assert pool.num_evictions == 0


def test_a_session_outlives_others() -> None:
    pool = BlockPool(num_blocks=4, block_size=BLOCK)
    sessions = SessionTable(pool, max_sessions=10)
    kept, loose = chain_of([1] * 8), chain_of([2] * 8)
    sessions.update("s", kept)
    pool.release(store(pool, kept))
    pool.release(store(pool, loose))
    pool.release(pool.allocate(2))
    assert len(pool.match(kept)) == 2
    assert pool.match(loose) == []
    sessions.close("s")
    pool.release(pool.allocate(4))
    assert pool.match(kept) == [], "without its session a chain is like any other"


def test_a_newer_turn_replaces_the_claim() -> None:
    pool = BlockPool(num_blocks=4, block_size=BLOCK)
    sessions = SessionTable(pool, max_sessions=10)
    first, second = chain_of([1] * 8), chain_of([2] * 8)
    for chain in (first, second):
        sessions.update("s", chain)
        pool.release(store(pool, chain))
    pool.release(pool.allocate(2))
    assert pool.match(first) == []
    assert len(pool.match(second)) == 2


def test_the_oldest_session_is_forgotten() -> None:
    pool = BlockPool(num_blocks=8, block_size=BLOCK)
    sessions = SessionTable(pool, max_sessions=2)
    for number in range(3):
        sessions.update(str(number), chain_of([number] * 4))
    assert len(sessions) == 2
    sessions.close("0")
    assert len(sessions) == 2, "it was the one forgotten"


PROMPTS = st.lists(st.integers(0, 1), min_size=1, max_size=6).map(
    lambda bits: [bit for bit in bits for _ in range(BLOCK)]
)
USES = st.lists(st.tuples(PROMPTS, st.sampled_from(["hold", "release", "session", "close"])), max_size=40)


@given(USES)
@settings(max_examples=150)
def test_no_block_is_lost_or_shared_by_accident(uses: list[tuple[list[int], str]]) -> None:
    pool = BlockPool(num_blocks=10, block_size=BLOCK)
    sessions = SessionTable(pool, max_sessions=2)
    content: dict[int, bytes] = {}
    held: list[tuple[list[int], list[bytes]]] = []
    for tokens, action in uses:
        chain = chain_of(tokens)
        if action == "session":
            sessions.update(str(tokens[0]), chain)
        elif action == "close":
            sessions.close(str(tokens[0]))
        elif action == "release" and held:
            pool.release(held.pop(0)[0])
        elif len(chain) <= pool.num_available:
            blocks = store(pool, chain)
            held.append((blocks, chain))
            content.update(zip(blocks, chain, strict=True))
        in_use = {block for blocks, _ in held for block in blocks}
        assert pool.num_held == len(in_use)
        assert all(content[block] == key for blocks, keys in held for block, key in zip(blocks, keys, strict=True))
        assert all(content[block] == key for block, key in zip(pool.match(chain), chain, strict=False))
    for blocks, _ in held:
        pool.release(blocks)
    assert sorted(pool.allocate(10)) == list(range(10))
