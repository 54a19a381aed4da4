"""Writing instances into folders, in a thread, and reading them back."""

from __future__ import annotations

from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

import msgspec
from torch import Tensor

from harmonia.engine.backbone import Backbone
from harmonia.engine.requests import Answer, SaveRequest, as_harmonia_error
from harmonia.engine.sequence import Instance
from harmonia.errors import InvalidRequestError
from harmonia.log import get_logger
from harmonia.models.adaptive_info import AdaptiveInfo, read_info
from harmonia.models.atomic import read_whole
from harmonia.models.drafts import require_other_place
from harmonia.models.peft import SavedAdapter
from harmonia.models.source import ModelSource
from harmonia.protocol.base import JsonObject
from harmonia.train.checkpoint import AdapterToSave, ModelToSave, OptimizerState, save_folder
from harmonia.train.optimizer_state import has_state, load_state
from harmonia.train.parameters import ParameterSet
from harmonia.train.weights import HEAD_NAME, TrainedWeights

log = get_logger(__name__)


class Saver:
    """Saves instances of one backbone. Until a save is done, nothing may overwrite what it reads: see `is_busy`."""

    def __init__(self, backbone: Backbone, path: str) -> None:
        """path: of the base model, to which adapters refer."""
        self._backbone = backbone
        self._path = path
        self._thread = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._writing: list[tuple[Future[JsonObject], Answer]] = []

    @property
    def is_busy(self) -> bool:
        """Something is being written."""
        return bool(self._writing)

    def begin(self, request: SaveRequest, instance: Instance, parameters: ParameterSet | None, answer: Answer) -> None:
        """Write an instance, and the state of its optimizer if `parameters` are given."""
        source = self._backbone.source
        assert source is not None, "only models that were read from files are saved"
        if request.merged and parameters is not None:
            raise InvalidRequestError(
                "merged=True writes no optimizer state; save with inference_only=True, or without merged",
                field="merged",
            )
        is_adapter = instance.adapter_slot is not None and not request.merged
        info = _info(request.info, source, is_adapter=is_adapter)
        needed = str(Path(self._path).absolute()) if is_adapter else info.draft_target
        require_other_place(Path(request.folder), needed)
        head = None if instance.head is None else instance.head.weight_E.detach()[None]
        model: AdapterToSave | ModelToSave
        matrices = {} if instance.adapter_slot is None else self._backbone.bank.read(instance.adapter_slot)
        if is_adapter:
            model = AdapterToSave(matrices, self._path, source, head, info)
        else:
            model = ModelToSave(self._backbone.decoder, source, head, info, matrices)
        state = None
        if parameters is not None:
            state = OptimizerState(parameters.state(), {"num_steps": parameters.num_steps})

        def write() -> JsonObject:
            num_bytes = save_folder(Path(request.folder), model, state)
            log.info("saved %s into %s: %.1f MB", request.instance, request.folder, num_bytes / 1e6)
            return {"num_bytes": num_bytes}

        self._writing.append((self._thread.submit(write), answer))

    def poll(self) -> None:
        """Tell of saves that ended."""
        for entry in [entry for entry in self._writing if entry[0].done()]:
            self._writing.remove(entry)
            future, answer = entry
            error = future.exception()
            if error is None:
                answer.done(future.result())
            else:
                assert isinstance(error, Exception)
                answer.failed(as_harmonia_error(error))

    def restore(self, weights: TrainedWeights, folder: Path) -> None:
        """Overwrite masters, and the optimizer's state where it was saved, and forget the gradient."""
        parameters = weights.parameters
        if has_state(folder):
            tensors, meta = read_whole(folder, load_state)
            num_steps = meta.get("num_steps")
            if not isinstance(num_steps, int) or num_steps < 0:
                raise InvalidRequestError(f"{folder}: optimizer.json says num_steps {num_steps!r}, not a whole number")
            parameters.load_state(tensors, num_steps)
        elif weights.slot is not None:
            parameters.restart_from(_adapter_values(self._backbone.read_adapter(folder)))
        else:
            raise InvalidRequestError(
                f"{folder} holds no optimizer state, which a full model in training is loaded from; save it with "
                "inference_only=False, or spawn it anew from this path"
            )
        parameters.drop_gradient()

    def close(self) -> None:
        """Let the thread end, after what it writes."""
        self._thread.shutdown()


def _info(given: JsonObject, source: ModelSource, *, is_adapter: bool) -> AdaptiveInfo:
    """What the folder will say of itself. What was trained from a draft drafts for the same model, unless told else."""
    kept: JsonObject = {}
    before = read_info(source.path) if source.path.is_dir() else None
    if before is not None and before.draft_target is not None and not is_adapter:
        kept = {"draft_target": before.draft_target, "num_draft_steps": before.num_draft_steps}
    try:
        info = msgspec.convert({"kind": "model", **kept, **given}, AdaptiveInfo)
    except msgspec.ValidationError as error:
        raise InvalidRequestError(f"details of the save are wrong: {error}", field="info") from error
    if info.num_draft_steps is not None and info.draft_target is None:
        raise InvalidRequestError(
            f"num_draft_steps={info.num_draft_steps} is about a draft: name the model for which it drafts as "
            "draft_target",
            field="draft_target",
        )
    return info


def _adapter_values(saved: SavedAdapter) -> dict[str, Tensor]:
    values = {}
    for path, lora in saved.matrices.items():
        values[f"{path}.lora_A"], values[f"{path}.lora_B"] = lora.a_rK, lora.b_Nr.T
    if saved.scalar_head is not None:
        values[HEAD_NAME] = saved.scalar_head[0]
    return values
