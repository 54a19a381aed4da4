"""Runs a decoder through a paged cache whose blocks lie in a random order, as the engine would."""

import random

import torch

from harmonia.kernels.pages import LayerCache, PagedLayout
from harmonia.layers.forward import Forward, PagedAttention
from harmonia.models.decoder import Decoder

BLOCK_SIZE = 4


class PagedRunner:
    """Sequences are named by index and remember their blocks and length."""

    def __init__(self, decoder: Decoder, num_sequences: int, max_len: int) -> None:
        self.decoder = decoder
        per_sequence = -(-max_len // BLOCK_SIZE)
        config = decoder.config
        shape = (num_sequences * per_sequence, BLOCK_SIZE, config.num_kv_heads, config.head_dim)
        dtype = decoder.fmt.dtype
        # NaN in unwritten places shows any read of a place that was never written.
        self.caches = tuple(
            LayerCache(torch.full(shape, torch.nan, dtype=dtype), torch.full(shape, torch.nan, dtype=dtype))
            for _ in range(config.num_layers)
        )
        blocks = list(range(shape[0]))
        random.Random(0).shuffle(blocks)
        self.blocks = [blocks[i * per_sequence : (i + 1) * per_sequence] for i in range(num_sequences)]
        self.lengths = [0] * num_sequences

    def hidden(self, chunks: dict[int, list[int]]) -> torch.Tensor:
        """Feed each sequence its next tokens, sequences with one token first; final hidden states in that order."""
        order = sorted(chunks, key=lambda sequence: len(chunks[sequence]) != 1)
        positions, slots, tokens = [], [], []
        for sequence in order:
            start = self.lengths[sequence]
            for position in range(start, start + len(chunks[sequence])):
                block = self.blocks[sequence][position // BLOCK_SIZE]
                positions.append(position)
                slots.append(block * BLOCK_SIZE + position % BLOCK_SIZE)
            tokens += chunks[sequence]
            self.lengths[sequence] += len(chunks[sequence])
        context_lens = tuple(self.lengths[sequence] for sequence in order)
        query_lens = tuple(len(chunks[sequence]) for sequence in order)
        blocks = [self.blocks[sequence] for sequence in order]
        layout = PagedLayout(
            slots_T=torch.tensor(slots),
            blocks_B=torch.tensor(blocks, dtype=torch.int32).flatten(),
            block_starts_S=torch.tensor([row * len(blocks[0]) for row in range(len(blocks))], dtype=torch.int32),
            context_lens_S=torch.tensor(context_lens, dtype=torch.int32),
            query_starts_S1=torch.tensor((0, *query_lens)).cumsum(0).int(),
            query_lens=query_lens,
            context_lens=context_lens,
            num_decodes=sum(len(chunks[sequence]) == 1 for sequence in order),
        )
        forward = Forward(torch.tensor(positions), PagedAttention(self.caches, layout))
        with torch.inference_mode():
            return self.decoder(torch.tensor(tokens), forward)

    def logits(self, chunks: dict[int, list[int]]) -> dict[int, torch.Tensor]:
        """Logits of every token that was fed, by sequence."""
        hidden = self.hidden(chunks)
        with torch.inference_mode():
            logits = self.decoder.logits(hidden)
        order = sorted(chunks, key=lambda sequence: len(chunks[sequence]) != 1)
        pieces = logits.split([len(chunks[sequence]) for sequence in order])
        return dict(zip(order, pieces, strict=True))
