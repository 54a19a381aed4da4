"""The pages of a backbone's cache: who holds them, what they contain, which go first when memory is short."""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Iterable, Sequence


class BlockPool:
    """Blocks 0 to `num_blocks - 1`, each free, held by sequences, or idle with content that may be matched again.

    Idle blocks are evicted least recently used first; a chain is released tail first, so leaves go before their
    parents. Blocks that a session keeps are evicted only after all others.
    """

    def __init__(self, num_blocks: int, block_size: int) -> None:
        self.num_blocks = num_blocks
        self.block_size = block_size
        self.num_evictions = 0
        self._free = list(range(num_blocks - 1, -1, -1))
        self._holders = [0] * num_blocks
        self._key_of: list[bytes | None] = [None] * num_blocks
        self._block_of: dict[bytes, int] = {}
        self._idle: OrderedDict[int, None] = OrderedDict()
        self._idle_kept: OrderedDict[int, None] = OrderedDict()
        self._keepers: dict[bytes, int] = {}

    def grow(self, num_blocks: int) -> None:
        """Add free blocks until there are so many."""
        extra = num_blocks - self.num_blocks
        assert extra >= 0, "a pool does not shrink"
        self._free[:0] = range(num_blocks - 1, self.num_blocks - 1, -1)
        self._holders += [0] * extra
        self._key_of += [None] * extra
        self.num_blocks = num_blocks

    # ------------------------------------------------------------------------------------------- sequences

    @property
    def num_available(self) -> int:
        """Blocks that `allocate` could hand out now."""
        return len(self._free) + len(self._idle) + len(self._idle_kept)

    @property
    def num_held(self) -> int:
        """Blocks that sequences hold."""
        return self.num_blocks - self.num_available

    def allocate(self, count: int) -> list[int]:
        """Take `count` blocks with undefined content; the caller has checked `num_available`."""
        assert count <= self.num_available, "the caller checks num_available"
        blocks = [self._take_one() for _ in range(count)]
        for block in blocks:
            self._holders[block] = 1
        return blocks

    def match(self, chain: Sequence[bytes]) -> list[int]:
        """Blocks of the longest known prefix of a chain, not yet held."""
        blocks = []
        for key in chain:
            block = self._block_of.get(key)
            if block is None:
                break
            blocks.append(block)
        return blocks

    def hold(self, blocks: Iterable[int]) -> None:
        """Hold matched blocks; several sequences may hold one."""
        for block in blocks:
            if self._holders[block] == 0:
                self._idle_of(block).pop(block)
            self._holders[block] += 1

    def publish(self, block: int, key: bytes) -> None:
        """Let others find a held, full block. A second block of equal content stays private."""
        if key not in self._block_of and self._key_of[block] is None:
            self._block_of[key] = block
            self._key_of[block] = key

    def release(self, blocks: Sequence[int]) -> None:
        """Give up a chain of blocks, in order; what others cannot find again becomes free at once."""
        for block in reversed(blocks):
            self._holders[block] -= 1
            if self._holders[block] == 0:
                if self._key_of[block] is None:
                    self._free.append(block)
                else:
                    self._idle_of(block)[block] = None

    # -------------------------------------------------------------------------------------------- sessions

    def keep(self, chain: Sequence[bytes]) -> None:
        """Prefer the blocks of a chain to others when evicting."""
        for key in reversed(chain):
            self._move(key, 1)

    def unkeep(self, chain: Sequence[bytes]) -> None:
        """Undo one `keep`."""
        for key in reversed(chain):
            self._move(key, -1)

    def _move(self, key: bytes, change: int) -> None:
        block = self._block_of.get(key)
        idle = block is not None and self._holders[block] == 0
        if block is not None and idle:
            self._idle_of(block).pop(block)
        count = self._keepers.get(key, 0) + change
        if count:
            self._keepers[key] = count
        else:
            self._keepers.pop(key, None)
        if block is not None and idle:
            self._idle_of(block)[block] = None

    # --------------------------------------------------------------------------------------------- inside

    def _idle_of(self, block: int) -> OrderedDict[int, None]:
        key = self._key_of[block]
        return self._idle_kept if key in self._keepers else self._idle

    def _take_one(self) -> int:
        if self._free:
            return self._free.pop()
        block, _ = (self._idle or self._idle_kept).popitem(last=False)
        key = self._key_of[block]
        assert key is not None, "idle blocks have content"
        del self._block_of[key]
        self._key_of[block] = None
        self.num_evictions += 1
        return block
