"""The trainers once more, with transformers, PEFT and torch's AdamW: one sample at a time, nothing packed or shared.

A step takes the next samples, moves by the mean of the losses of their training calls, and logs. Tokens and weights
come from the engine; everything else is computed here.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple, TypeVar

import numpy as np
import torch
from peft import PeftModel, get_peft_model_state_dict
from torch import Tensor
from torch.nn import functional as F
from transformers import AutoModelForCausalLM, AutoModelForSequenceClassification

SampleT = TypeVar("SampleT")
Record = dict[str, float]
SHARES = ("completion_percentage", "training/completion_percentage")


@dataclass(frozen=True)
class Text:
    """A thread as tokens; the weight of a token is that of its turn."""

    token_ids: list[int]
    weights: list[float]

    @property
    def num_weighted(self) -> int:
        return sum(weight != 0 for weight in self.weights)


class Reference:
    """PEFT's model of an adapter that the engine saved, and the optimizer that moves it."""

    def __init__(self, base: Path, adapter: Path, *, scores: bool = False) -> None:
        kind = AutoModelForSequenceClassification if scores else AutoModelForCausalLM
        model = kind.from_pretrained(base, num_labels=1, dtype=torch.float32)
        self.model = PeftModel.from_pretrained(model, adapter, is_trainable=True)
        self._trained = [parameter for parameter in self.model.parameters() if parameter.requires_grad]
        self._optimizer = torch.optim.AdamW(self._trained, betas=(0.9, 0.999), eps=1e-8)

    def weights(self) -> dict[str, Tensor]:
        """All that is trained, by the names of an adapter's file."""
        return {name: value.detach().clone() for name, value in get_peft_model_state_dict(self.model).items()}

    def logprobs(self, text: Text) -> Tensor:
        """Log-probabilities of the weighted tokens."""
        ids = torch.tensor([text.token_ids])
        table = F.log_softmax(self.model(input_ids=ids).logits[0, :-1], dim=-1)
        return table.gather(1, ids[0, 1:, None])[:, 0][torch.tensor(text.weights[1:]) != 0]

    def score(self, text: Text) -> Tensor:
        """The scalar head at the last token."""
        return self.model(input_ids=torch.tensor([text.token_ids])).logits[0, 0]

    def step(self, losses: Sequence[Tensor], lr: float, plan: Plan) -> Record:
        """Move by the mean of the losses."""
        loss = torch.stack(tuple(losses)).mean()
        self._optimizer.zero_grad()
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(self._trained, plan.max_grad_norm)
        for group in self._optimizer.param_groups:
            group.update(lr=lr, weight_decay=plan.weight_decay)
        self._optimizer.step()
        return {"loss": float(loss.detach()), "grad_norm": float(norm), "lr": lr, "num_samples": len(losses)}


# ----------------------------------------------------------------------------------------------------- the losses


@dataclass(frozen=True)
class Learnt:
    """What a sample brings to a step: the loss of each of its training calls, and what is logged of it."""

    losses: tuple[Tensor, ...]
    num_tokens: int
    num_input_tokens: int
    metrics: Record = field(default_factory=dict)


def language_modelling(reference: Reference, text: Text) -> Learnt:
    """Minus the weighted sum of the log-probabilities."""
    weights = torch.tensor([weight for weight in text.weights if weight])
    loss = -(weights * reference.logprobs(text)).sum()
    return Learnt((loss,), text.num_weighted, len(text.token_ids))


def language_tangents(reference: Reference, text: Text) -> Learnt:
    """The same by `train_tangents`, which is given all tokens but the last."""
    learnt = language_modelling(reference, text)
    per_token = -float(reference.logprobs(text).detach().sum()) / sum(text.weights)
    return Learnt(learnt.losses, learnt.num_tokens, len(text.token_ids) - 1, {"policy/loss": per_token})


def by_tokens(step: Sequence[Learnt]) -> Record:
    """What language modelling logs of a step: longer samples count more."""
    counts = [each.num_tokens for each in step]
    loss = np.average([each.metrics["policy/loss"] for each in step], weights=counts)
    return {"policy/loss": float(loss), "policy/num_tokens": sum(counts)}


def by_samples(step: Sequence[Learnt]) -> Record:
    """What the others log of a step."""
    return {name: float(np.mean([each.metrics[name] for each in step])) for name in step[0].metrics}


def validation_loss(reference: Reference, texts: Sequence[Text]) -> float:
    """Per token of each text, then the mean over them."""
    with torch.no_grad():
        return float(np.mean([-float(reference.logprobs(text).mean()) for text in texts]))


@dataclass(frozen=True)
class Preference:
    """DPO against a model that stays as it was."""

    frozen: Reference
    beta: float
    tangents: bool = False

    def __call__(self, reference: Reference, pair: tuple[Text, Text]) -> Learnt:
        chosen, rejected = (reference.logprobs(text).sum() for text in pair)
        with torch.no_grad():
            old_chosen, old_rejected = (self.frozen.logprobs(text).sum() for text in pair)
        loss = -F.logsigmoid(self.beta * ((chosen - rejected) - (old_chosen - old_rejected)))
        count, tokens = sum(text.num_weighted for text in pair), sum(len(text.token_ids) for text in pair)
        if not self.tangents:
            return Learnt((loss,), count, tokens)
        # each side is a call of its own, with the derivative of the loss
        strength = self.beta * (1 - torch.exp(-loss)).detach()
        gain, cost = (float(self.beta * change.detach()) for change in (chosen - old_chosen, rejected - old_rejected))
        metrics = {
            "policy/chosen_rewards": gain,
            "policy/rejected_rewards": cost,
            "policy/reward_margin": gain - cost,
            "policy/reward_accuracy": float(gain > cost),
            "policy/loss": float(loss.detach()),
        }
        return Learnt((-strength * chosen, strength * rejected), count, tokens - 2, metrics)


def ranking(reference: Reference, pair: tuple[Text, Text]) -> Learnt:
    """The better text shall score higher."""
    better, worse = (reference.score(text) for text in pair)
    return Learnt((-F.logsigmoid(better - worse),), 2, sum(len(text.token_ids) for text in pair))


def squared_error(reference: Reference, sample: tuple[Text, float]) -> Learnt:
    """The text shall score this."""
    text, target = sample
    return Learnt(((reference.score(text) - target) ** 2,), 1, len(text.token_ids))


# ------------------------------------------------------------------------------------------------------- the loop


@dataclass(frozen=True)
class Plan:
    """A trainer's settings."""

    samples_per_batch: int
    lr: float
    epochs: float = 1
    looping: bool = False
    """The last batch goes on into another epoch instead of staying short."""
    weight_decay: float = 0.0
    max_grad_norm: float = 1.0
    refused: frozenset[int] = frozenset()
    """Samples that cannot be trained; the next one takes the place of each."""
    seed: int = 42


class Batch(NamedTuple):
    """The samples of a step, and how far the run is with them."""

    samples: list[int]
    completed: float
    num_dropped: int


def batches(count: int, plan: Plan) -> Iterator[Batch]:
    """Samples in shuffled epochs, until enough were taken."""
    rng = np.random.default_rng(plan.seed)
    order: list[int] = rng.permutation(count).tolist()
    taken, num_dropped = 0, 0
    while taken < plan.epochs * count:
        samples: list[int] = []
        while len(samples) < plan.samples_per_batch and (taken < count or plan.looping):
            if taken == len(order):
                order += rng.permutation(count).tolist()
            sample = order[taken]
            taken += 1
            if sample in plan.refused:
                num_dropped += 1
            else:
                samples.append(sample)
        yield Batch(samples, taken / count / plan.epochs, num_dropped)


def cosine(lr: float, completed: float) -> float:
    """Up to `lr` over a tenth of the run, then down to a tenth of it."""
    if completed < 0.1:
        return lr * completed / 0.1
    phase = math.pi * (completed - 0.1) / 0.9
    return lr / 10 + 0.5 * (math.cos(phase) + 1) * (lr - lr / 10)


class Clock:
    """Says when a callback is due: when another multiple of its frequency was passed, and at the end."""

    def __init__(self, frequency: float) -> None:
        self._frequency, self._last = frequency, -1.0

    def due(self, completed: float) -> bool:
        if completed - self._last < self._frequency and completed < 1:
            return False
        self._last = math.floor(completed / self._frequency) * self._frequency
        return True


def train(
    reference: Reference,
    samples: Sequence[SampleT],
    learn: Callable[[Reference, SampleT], Learnt],
    plan: Plan,
    summarise: Callable[[Sequence[Learnt]], Record] = by_samples,
    watch: Callable[[float], Record] = lambda completed: {},
) -> list[Record]:
    """What a whole run logs. watch: what callbacks add when the run is so far; they also run before it."""
    before = watch(0.0)
    records = [before | dict.fromkeys(SHARES, 0.0)] if before else []
    for batch in batches(len(samples), plan):
        learnt = [learn(reference, samples[index]) for index in batch.samples]
        losses = [loss for each in learnt for loss in each.losses]
        record = reference.step(losses, cosine(plan.lr, batch.completed), plan)
        record["num_tokens"] = sum(each.num_tokens for each in learnt)
        record["num_input_tokens"] = sum(each.num_input_tokens for each in learnt)
        record["num_dropped_samples"] = batch.num_dropped
        record |= summarise(learnt) | watch(batch.completed)
        records.append(record | dict.fromkeys(SHARES, batch.completed))
    return records
