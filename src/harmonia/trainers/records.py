"""What a training was told: logged as its configuration, and hashed so that a resumed one is known to be the same.

`@log_args` and `@hash_hyperparams({...})` go on a function, on an `__init__`, or on a class (a dataclass, say).
"""

from __future__ import annotations

import functools
import hashlib
import inspect
import json
import re
from collections.abc import Callable, Iterable, Mapping, Sequence
from collections.abc import Set as AnySet
from typing import Any, TypeVar

import numpy as np
from pydantic import BaseModel

from harmonia.client import InferenceModel, StringThread
from harmonia.trainers.metric_loggers.base import Logger
from harmonia.trainers.metric_loggers.production import local_logger

FunctionT = TypeVar("FunctionT", bound=Callable[..., Any])

_SHORT = 16
_LONGEST_SETTING = 2000
"""In characters."""
_ADDED_BY_DATASETS = "sample_index"
_ADDRESS = re.compile(r" at 0x[0-9a-fA-F]+")


def log_args(func: FunctionT) -> FunctionT:
    """Before each call, send its arguments to the Logger among them, or to the terminal if there is none.

    A model is logged as what its builder was told. What is no plain data (a data set) or too long to read (a
    checkpoint) is left out.
    """

    def log_config(arguments: dict[str, Any]) -> None:
        loggers = (value for value in arguments.values() if isinstance(value, Logger))
        config = {name: plain(value) for name, value in arguments.items() if is_plain(value)}
        readable = {name: value for name, value in config.items() if len(str(value)) <= _LONGEST_SETTING}
        (next(loggers, None) or local_logger()).log_config(readable)

    return _before(func, lambda _, arguments: log_config(arguments))


def hash_hyperparams(include: AnySet[str]) -> Callable[[FunctionT], FunctionT]:
    """Before an object is made, store the hash of those of its arguments as its `hyperparams_hash`."""

    def store(owner: Any, arguments: dict[str, Any]) -> None:
        chosen = {name: value for name, value in arguments.items() if name in include}
        object.__setattr__(owner, "hyperparams_hash", hash_of(chosen))

    return lambda func: _before(func, store)


def hash_dataset(dataset: Sequence[StringThread], num_samples: int = 5) -> str:
    """A hash of the number of threads and of `num_samples` of them, spread over the whole: turns, weights, metadata.

    What `DataSet` adds to metadata does not count: the same threads hash alike before, while and after they are used.
    """
    digest = hashlib.sha256(str(len(dataset)).encode())
    for place in np.linspace(0, len(dataset) - 1, min(num_samples, len(dataset))):
        thread = dataset[round(place)]
        digest.update(thread.to_json().encode())
        digest.update(_json(_own_metadata(thread)))
    return digest.hexdigest()[:_SHORT]


def hash_of(value: Any) -> str:
    """16 hexadecimal digits that are the same for equal values in every process."""
    return hashlib.sha256(_json(value)).hexdigest()[:_SHORT]


def _json(value: Any) -> bytes:
    return json.dumps(stable(value), sort_keys=True).encode()


def _own_metadata(thread: StringThread) -> Any:
    """Metadata without what `DataSet` adds; none and an empty dict are the same."""
    metadata = thread.metadata
    if isinstance(metadata, Mapping):
        metadata = {key: value for key, value in metadata.items() if key != _ADDED_BY_DATASETS}
    return metadata or None


# ------------------------------------------------------------------------------------------------------ decorating


def _before(func: FunctionT, act: Callable[[Any, dict[str, Any]], None]) -> FunctionT:
    """Call `act` with the first argument (the object, for an `__init__`) and all others by name before each call."""
    if isinstance(func, type):
        func.__init__ = _before(func.__init__, act)  # type: ignore[misc]
        return func
    signature = inspect.signature(func)

    @functools.wraps(func)
    def wrapper(*args: Any, **kwargs: Any) -> Any:
        bound = signature.bind(*args, **kwargs)
        bound.apply_defaults()
        arguments = {name: value for name, value in bound.arguments.items() if name != "self"}
        act(bound.arguments.get("self"), arguments)
        return func(*args, **kwargs)

    return wrapper  # type: ignore[return-value]


# ------------------------------------------------------------------------------------------------------- plain data


def is_plain(value: Any) -> bool:
    """Whether `plain` can tell it: a model, or what JSON can hold."""
    if isinstance(value, Mapping):
        return all(isinstance(key, str) and is_plain(item) for key, item in value.items())
    if isinstance(value, list | tuple | AnySet):
        return all(map(is_plain, value))
    return value is None or isinstance(value, str | int | float | np.number | BaseModel | InferenceModel)


def plain(value: Any) -> Any:
    """A model as its builder's arguments; all else in the form that JSON has for it."""
    if isinstance(value, InferenceModel):
        return value.get_builder_args()
    if isinstance(value, BaseModel):
        return value.model_dump(mode="json", fallback=str)
    if isinstance(value, np.number):
        return value.item()
    if isinstance(value, Mapping):
        return {key: plain(item) for key, item in value.items()}
    if isinstance(value, AnySet):
        return sorted(map(plain, value), key=repr)
    return [plain(item) for item in value] if isinstance(value, list | tuple) else value


def stable(value: Any) -> Any:
    """Plain data that is the same in every process: code by its name and content, other objects by type and state."""
    return _stable(value, ())


def _stable(value: Any, above: tuple[int, ...]) -> Any:
    """`above` are the ids of what holds the value; an object inside itself is told by its type alone."""
    if id(value) in above:
        return type(value).__qualname__
    above = (*above, id(value))
    if isinstance(value, Mapping):
        return {str(key): _stable(item, above) for key, item in value.items()}
    if isinstance(value, AnySet):
        return sorted((_stable(item, above) for item in value), key=repr)
    if isinstance(value, list | tuple):
        return [_stable(item, above) for item in value]
    if isinstance(value, np.ndarray):
        return [str(value.dtype), value.tolist()]
    if is_plain(value) and not isinstance(value, BaseModel):
        return plain(value)
    return _stable_object(value, above)


def _stable_object(value: Any, above: tuple[int, ...]) -> Any:
    if isinstance(value, functools.partial):
        return ["partial", *(_stable(part, above) for part in (value.func, value.args, value.keywords))]
    if inspect.ismethod(value):
        return [value.__qualname__, _stable(value.__self__, above)]
    if inspect.isfunction(value):
        return [value.__module__, value.__qualname__, *_code(value, above)]
    if isinstance(value, type) or inspect.isbuiltin(value):
        return [value.__module__, value.__qualname__]
    kind = f"{type(value).__module__}.{type(value).__qualname__}"
    state = getattr(value, "__dict__", None)
    return [kind, _ADDRESS.sub("", str(value)) if state is None else _stable(state, above)]


def _code(function: Any, above: tuple[int, ...]) -> Iterable[Any]:
    """What a function does, as far as its own text says: two lambdas have the same name."""
    code = function.__code__
    yield code.co_code.hex()
    yield [_stable(constant, above) for constant in code.co_consts if not inspect.iscode(constant)]
    yield list(code.co_names)
    yield _stable([function.__defaults__, function.__kwdefaults__], above)
    yield [_stable(cell.cell_contents, above) for cell in function.__closure__ or ()]
