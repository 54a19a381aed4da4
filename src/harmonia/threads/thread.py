"""What threads of text and of tokens have in common: wire data that never changes, and metadata of the caller's."""

from __future__ import annotations

import operator
from collections.abc import Collection
from typing import Any, Generic, NoReturn, Self, SupportsIndex, TypeVar

import msgspec

from harmonia.errors import InvalidRequestError
from harmonia.protocol.threads import ThreadData, TokenThreadData
from harmonia.threads.weights import float32

DataT = TypeVar("DataT", ThreadData, TokenThreadData)


class Thread(Generic[DataT]):
    """A conversation whose turns have weights; equal only to itself.

    Every method that changes something returns a new thread. It shares the metadata object, which may be rebound.
    """

    __slots__ = ("_data", "_metadata")
    _data: DataT
    _metadata: Any

    @classmethod
    def from_data(cls, data: DataT, metadata: Any = None) -> Self:
        """The thread of wire data. InvalidRequestError for weights that are no finite 32-bit floats."""
        for index, turn in enumerate(data.turns):
            try:
                float32(turn.weight)
            except OverflowError as error:
                raise InvalidRequestError(f"weight of turn {index}: {error}; give a finite number") from error
        return cls._make(data, metadata)

    @classmethod
    def _make(cls, data: DataT, metadata: Any) -> Self:
        thread = object.__new__(cls)
        thread._data = data
        thread._metadata = metadata
        return thread

    def to_data(self) -> DataT:
        """What travels: everything but the metadata."""
        return self._data

    @property
    def metadata(self) -> Any:
        """Whatever the caller attached; never copied, never sent."""
        return self._metadata

    @metadata.setter
    def metadata(self, value: Any) -> None:
        self._metadata = value

    def get_turn_weights(self) -> list[float]:
        """The weight of each turn."""
        return [turn.weight for turn in self._data.turns]

    def with_weight_all_assistant_turns(self) -> Self:
        """Assistant turns weigh 1, all others nothing."""
        return self._weigh(self._assistant_turns())

    def with_weight_last_assistant_turn(self) -> Self:
        """The last assistant turn weighs 1, wherever it stands, all others nothing."""
        return self._weigh(self._assistant_turns()[-1:])

    def with_weight_assistant_turns_from_index(self, start_index: SupportsIndex) -> Self:
        """Assistant turns from the `start_index`-th on (they are counted from 0) weigh 1, all others nothing.

        OverflowError for a negative index; one beyond the last assistant turn leaves no weight at all.
        """
        start = operator.index(start_index)
        if start < 0:
            raise OverflowError(f"start_index {start} is negative; assistant turns are counted from 0")
        return self._weigh(self._assistant_turns()[start:])

    def _assistant_turns(self) -> list[int]:
        return [index for index, turn in enumerate(self._data.turns) if turn.role == "assistant"]

    def _weigh(self, chosen: Collection[int]) -> Self:
        chosen = frozenset(chosen)
        turns = tuple(
            msgspec.structs.replace(turn, weight=float(index in chosen)) for index, turn in enumerate(self._data.turns)
        )
        return self._make(msgspec.structs.replace(self._data, turns=turns), self._metadata)

    def __reduce_ex__(self, protocol: SupportsIndex) -> NoReturn:
        """Refuse `pickle` and `copy`: a copy would silently part from the metadata that it should share."""
        raise TypeError(f"cannot pickle or copy {type(self).__name__!r} object; a thread never changes, so share it")
