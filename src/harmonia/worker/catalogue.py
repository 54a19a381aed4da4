"""What models say of themselves in their files, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from harmonia.errors import InvalidRequestError, TokenizerMismatchError
from harmonia.models.adaptive_info import AdaptiveInfo, read_info
from harmonia.models.registry import ModelRegistry
from harmonia.models.source import adapter_base, open_model
from harmonia.models.tokenizer import load_tokenizer, tokenizer_difference
from harmonia.protocol.instances import NGRAM, DescribeModel, ModelDescription


class Catalogue:
    """Reads headers of models on this machine; callable from any thread."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def describe(self, request: DescribeModel) -> ModelDescription:
        """What the files of a model say. Errors: UnknownModelError, UnsupportedModelError."""
        path = self._registry.resolve(request.path)
        base = self._base(path)
        config = open_model(base or path).config
        info = (read_info(path) if path.is_dir() else None) or AdaptiveInfo(kind="model" if base is None else "adapter")
        return ModelDescription(
            id=request.id,
            path=str(path),
            kind="model" if base is None else "adapter",
            family=config.family,
            max_seq_len=config.max_seq_len,
            base=None if base is None else str(base),
            is_scalar=info.scalar_head,
            defaults=info.defaults,
        )

    def draft(self, target: str, draft: str | None) -> str | None:
        """The path of a draft model; TokenizerMismatchError unless it has the tokenizer of its target."""
        if draft is None or draft == NGRAM:
            return draft
        target_path, draft_path = self._registry.resolve(target), self._registry.resolve(draft)
        if self._base(draft_path) is not None:
            raise InvalidRequestError(
                f"the draft {draft} is an adapter; give the path of a whole model", field="with_draft"
            )
        tokenizers = [load_tokenizer(open_model(path)) for path in (self._base(target_path) or target_path, draft_path)]
        difference = tokenizer_difference(*tokenizers)
        if difference is not None:
            raise TokenizerMismatchError(
                f"the draft {draft} has another tokenizer than {target}: {difference}; give a draft of the same family",
                field="with_draft",
            )
        return str(draft_path)

    def _base(self, path: Path) -> Path | None:
        base = adapter_base(path)
        return None if base is None else self._registry.resolve(base)
