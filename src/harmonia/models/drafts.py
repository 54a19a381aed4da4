"""Drafts on disk: a saved model that names another, to which it proposes tokens. Imports no torch.

Who spawns such a folder to answer gets that other model, the target, with the draft beside it. Who trains it trains
the draft.
"""

from __future__ import annotations

from pathlib import Path
from typing import NamedTuple

from harmonia.errors import InvalidRequestError, UnknownModelError
from harmonia.models.adaptive_info import FILE, AdaptiveInfo, read_info
from harmonia.models.registry import ModelRegistry
from harmonia.models.source import adapter_base
from harmonia.protocol.instances import NGRAM, SCHEME

_PATHS = ("/", "~", SCHEME)
"""How the names of targets begin that are no plain keys."""


class Pairing(NamedTuple):
    """A model and what proposes tokens to it."""

    model: Path
    draft: Path | None = None
    """The draft's weights."""
    is_ngram: bool = False
    """The conversation proposes instead."""
    num_steps: int | None = None
    """Proposals at a time; None: the default."""

    @property
    def source(self) -> str | None:
        """The draft as `SpawnSpec.draft` has it."""
        return NGRAM if self.is_ngram else None if self.draft is None else str(self.draft)


def pair(registry: ModelRegistry, model: str, draft: str | None = None, num_steps: int | None = None) -> Pairing:
    """What answers under the name of a model, and with which draft: the one that was asked for, or the model's own.

    num_steps: None takes what the draft was saved with.
    Errors: UnknownModelError for what is not there, InvalidRequestError for what does not go together.
    """
    path = registry.resolve(model)
    target = draft_target(path, registry)
    if target is None and draft is None:
        if num_steps is not None:
            raise InvalidRequestError(
                f"num_draft_steps={num_steps}, but {model} has no draft: name a smaller model, or {NGRAM!r}",
                field="num_draft_steps",
            )
        return Pairing(path)
    if target is not None and draft is not None:
        raise InvalidRequestError(
            f"{model} is a draft of {target} and brings itself as such: leave the draft {draft} out, or give it to "
            f"{target}",
            field="with_draft",
        )
    if draft == NGRAM:
        return Pairing(path, is_ngram=True, num_steps=num_steps)
    own = path if draft is None else _draft(draft, registry)
    if adapter_base(own) is not None:
        raise InvalidRequestError(
            f"the draft {draft} is an adapter; give the path of a whole model", field="with_draft"
        )
    info = _info(own)
    saved = None if info is None else info.num_draft_steps
    return Pairing(target or path, own, num_steps=saved if num_steps is None else num_steps)


def draft_target(path: Path, registry: ModelRegistry) -> Path | None:
    """The model for which the one at a path drafts; None if it is no draft.

    The target is named by `model_registry://KEY`, by an absolute path, or by its plain key. A target that drafts for
    another is refused, so there are no circles.
    """
    info = _info(path)
    if info is None or info.draft_target is None:
        return None
    name = info.draft_target
    if adapter_base(path) is not None:
        raise InvalidRequestError(
            f"{path} is an adapter and says that it drafts for {name}; a draft is a whole model: save one that was "
            "trained with with_adapter(False)",
            field="path",
        )
    try:
        target = registry.resolve(_uri(name))
    except InvalidRequestError as error:
        raise UnknownModelError(
            f"{path} drafts for {name}, which cannot be found ({error.message}); bring that model back, or name "
            f"another as draft_target in its {FILE}",
            field="path",
        ) from error
    others = _info(target)
    if others is not None and others.draft_target is not None:
        raise InvalidRequestError(
            f"{path} says that it drafts for {name}, which is a draft itself, of {others.draft_target}; name the "
            f"model that answers as draft_target in its {FILE}",
            field="path",
        )
    return target


def _draft(draft: str, registry: ModelRegistry) -> Path:
    try:
        return registry.resolve(draft)
    except UnknownModelError as error:
        raise UnknownModelError(
            f"the draft {draft!r} cannot be found ({error.message}); name a smaller model of the same tokenizer, or "
            f"{NGRAM!r}",
            field="with_draft",
        ) from error


def require_other_place(folder: Path, needed: str | None) -> None:
    """InvalidRequestError for a folder of the registry in which stands what the model that is saved there needs.

    needed: an adapter's base, or the target of a draft, as it is named in the files of the one that is saved.
    """
    registry = ModelRegistry(folder.parent)
    while needed is not None:
        uri = _uri(needed)
        path = registry.path_for(uri.removeprefix(SCHEME)) if uri.startswith(SCHEME) else Path(uri).expanduser()
        if _place(path) == _place(folder):
            raise InvalidRequestError(
                f"saved as {folder.name!r} it would take the place of {path}, which it needs as its base or target; "
                "choose another key",
                field="model_name",
            )
        needed = adapter_base(path)


def _uri(name: str) -> str:
    return name if name.startswith(_PATHS) else f"{SCHEME}{name}"


def _place(path: Path) -> Path:
    """Of an entry, not of what it may link to: a save replaces the link."""
    return path.parent.resolve() / path.name


def _info(path: Path) -> AdaptiveInfo | None:
    return read_info(path) if path.is_dir() else None
