"""One pass of a draft: the next proposal of each row that samples, which stays on the device.

Shapes: R rows that sample, V vocabulary of the target.
"""

from __future__ import annotations

from harmonia.engine.batch import Batch
from harmonia.engine.sampler import Sampler
from harmonia.engine.steps import CachedModel, GraphedSteps, PlainSteps
from harmonia.kernels.feed import remember


class Proposer:
    """A draft, and how it chooses."""

    def __init__(self, model: CachedModel, steps: GraphedSteps | PlainSteps, sampler: Sampler) -> None:
        self.model = model
        self.steps = steps
        self._sampler = sampler

    def __call__(self, batch: Batch) -> None:
        """Compute a batch, and keep what follows each row that samples where the next pass and the target take it."""
        if not batch.generating:
            self.steps.run(batch)
        elif all(work.sequence.is_greedy for work in batch.generating):
            self.steps.propose(batch)
        else:
            inputs, hidden_TE = self.steps.run(batch)
            logits_RV = self.model.logits(hidden_TE if batch.is_decode else hidden_TE[inputs.sample_rows_R])
            # The same draw as the target's: where the two agree on the probabilities, they agree on the token.
            ids_R = self._sampler(logits_RV, batch.generating, drafts=True)
            remember(self.model.last_ids, inputs.sample_slots_R, ids_R)
