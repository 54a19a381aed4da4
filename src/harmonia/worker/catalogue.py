"""What models say of themselves in their files, before anything is loaded."""

from __future__ import annotations

from pathlib import Path

from harmonia.errors import TokenizerMismatchError, UnknownModelError
from harmonia.models.adaptive_info import AdaptiveInfo, read_info
from harmonia.models.drafts import Pairing, draft_target, pair
from harmonia.models.registry import ModelRegistry
from harmonia.models.source import adapter_base, open_model
from harmonia.models.tokenizer import load_tokenizer, tokenizer_difference
from harmonia.protocol.instances import DescribeModel, ModelDescription


class Catalogue:
    """Reads headers of models on this machine; callable from any thread."""

    def __init__(self, registry: ModelRegistry) -> None:
        self._registry = registry

    def describe(self, request: DescribeModel) -> ModelDescription:
        """What the files of a model say; of a draft, what those of its target say, which is what answers.

        Errors: UnknownModelError, UnsupportedModelError.
        """
        path = self._registry.resolve(request.path)
        target = draft_target(path, self._registry)
        own, answering = _info(path), path if target is None else target
        base = self._base(answering)
        info = own if target is None else _info(answering)
        config = open_model(base or answering).config
        return ModelDescription(
            id=request.id,
            path=str(path),
            kind="model" if base is None else "adapter",
            family=config.family,
            max_seq_len=config.max_seq_len,
            num_layers=config.num_layers,
            base=None if base is None else str(base),
            is_scalar=info.scalar_head,
            defaults={**info.defaults, **own.defaults},
            draft_target=None if target is None else str(target),
            num_draft_steps=own.num_draft_steps,
        )

    def pair(self, model: str, draft: str | None, num_steps: int | None) -> Pairing:
        """What answers under the name of a model, and with which draft; see `models.drafts`.

        TokenizerMismatchError unless the draft has the tokenizer of its target. UnknownModelError for an adapter whose
        base model is not here.
        """
        pairing = pair(self._registry, model, draft, num_steps)
        base = self._base(pairing.model)
        if pairing.draft is not None:
            paths = (base or pairing.model, pairing.draft)
            difference = tokenizer_difference(*(load_tokenizer(open_model(path)) for path in paths))
            if difference is not None:
                raise TokenizerMismatchError(
                    f"the draft {draft or model} has another tokenizer than {pairing.model}: {difference}; give a "
                    "draft of the same family",
                    field="with_draft",
                )
        return pairing

    def _base(self, path: Path) -> Path | None:
        base = adapter_base(path)
        try:
            return None if base is None else self._registry.resolve(base)
        except UnknownModelError as error:
            raise UnknownModelError(
                f"{path} is an adapter of {base}, which is not here ({error.message}); bring that model, and name its "
                "folder as base_model_name_or_path in adapter_config.json",
                field="path",
            ) from error


def _info(path: Path) -> AdaptiveInfo:
    return (read_info(path) if path.is_dir() else None) or AdaptiveInfo(kind="model")
