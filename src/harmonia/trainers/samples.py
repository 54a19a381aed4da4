"""What trainers ask of their samples before anything is trained."""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Sequence
from typing import Any, SupportsFloat

import msgspec

from harmonia.client import StringThread
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger

log = get_logger(__name__)

Pair = tuple[StringThread, StringThread]
"""A preferred conversation and a rejected one."""

_WEIGH = "use thread.with_weight_last_assistant_turn() or with_weight_all_assistant_turns()"


def check_threads(dataset: Sequence[Any]) -> None:
    """InvalidRequestError unless every sample is a thread of which something can be learned."""
    for index, sample in enumerate(dataset):
        check_weighted(sample, f"sample {index}")


def check_pairs(dataset: Sequence[Any]) -> None:
    """InvalidRequestError unless every sample is a pair of threads of which something can be learned."""
    for index, sample in enumerate(dataset):
        for side, thread in zip(("preferred", "rejected"), as_pair(sample, index), strict=True):
            check_weighted(thread, f"the {side} side of sample {index}")


def as_pair(sample: Any, index: int) -> Pair:
    """The sample if it is a pair; InvalidRequestError otherwise."""
    if not isinstance(sample, tuple | list) or len(sample) != 2:
        length = f" of {len(sample)}" if isinstance(sample, tuple | list) else ""
        raise InvalidRequestError(
            f"sample {index} is a {type(sample).__name__}{length} and no pair; use (preferred thread, rejected thread)",
            field="dataset",
        )
    preferred, rejected = sample
    return preferred, rejected


def check_turns(thread: Any, name: str) -> None:
    """InvalidRequestError unless it is a thread with turns."""
    if not isinstance(thread, StringThread):
        raise InvalidRequestError(f"{name} is a {type(thread).__name__}; give a StringThread", field="dataset")
    if not thread.to_data().turns:
        raise InvalidRequestError(f"{name} is a thread without turns; leave it out", field="dataset")


def check_weighted(thread: Any, name: str) -> None:
    """InvalidRequestError unless it is a thread in which some turn has weight."""
    check_turns(thread, name)
    if not any(thread.get_turn_weights()):
        raise InvalidRequestError(f"{name} has no turn to learn, as all weights are 0; {_WEIGH}", field="dataset")


def prompt_of(thread: StringThread) -> StringThread:
    """The thread without a last assistant turn."""
    data = thread.to_data()
    if not data.turns or data.turns[-1].role != "assistant":
        return thread
    return StringThread.from_data(msgspec.structs.replace(data, turns=data.turns[:-1]), thread.metadata)


def reward_of(thread: StringThread, name: str) -> float:
    """The number that a scoring model shall give to the thread: its `metadata["res"]`; InvalidRequestError without."""
    metadata = thread.metadata
    if not isinstance(metadata, dict) or "res" not in metadata:
        raise InvalidRequestError(
            f'{name} has no metadata["res"], the reward to learn; a Dataset with a feedback_key sets it',
            field="dataset",
        )
    reward = metadata["res"]
    if not isinstance(reward, SupportsFloat) or not math.isfinite(reward):
        raise InvalidRequestError(f'{name} has metadata["res"] = {reward!r}; give a finite number', field="dataset")
    return float(reward)


def warn_of_weights(dataset: Sequence[StringThread]) -> None:
    """Log how many threads teach what others than the assistant say, or leave out some of its turns."""
    taught, left_out = Counter[str](), 0
    for thread in dataset:
        turns = [(turn.role, turn.weight) for turn in thread.to_data().turns]
        taught.update({role for role, weight in turns if weight and role != "assistant"})
        left_out += any(role == "assistant" and not weight for role, weight in turns)
    for role, count in taught.items():
        log.warning("%d of %d threads train %s turns, which have weight; %s", count, len(dataset), role, _WEIGH)
    if left_out:
        log.warning(
            "%d of %d threads have assistant turns of weight 0, which are not trained; "
            "with_weight_all_assistant_turns() weighs them all",
            left_out,
            len(dataset),
        )
