"""transformers and PEFT: LoRA on every linear layer, batches padded and masked, gradients summed over them."""

from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.channel import EngineError, require
from benchmarks.peers.peak import Peak
from benchmarks.peers.training import Stepped, Trainer, TrainingJob, serve_training

REMEDY = "pip install torch transformers peft"
IGNORED = -100


class PeftTrainer:
    """A model, its adapter and AdamW, without gradient checkpointing."""

    def __init__(self, torch: ModuleType, model: Any, job: TrainingJob, peak: Peak, *, version: str) -> None:
        self._torch = torch
        self._model = model
        self._job = job
        self._trained = [parameter for parameter in model.parameters() if parameter.requires_grad]
        self._adam = torch.optim.AdamW(self._trained, lr=job.lr, weight_decay=0.0, fused=True)
        self.peak = peak
        self.version = version
        order = ", sorted by length" if job.is_sorted else ", in the order given"
        self.arrangement = f"batches of {job.batch_size}{order if job.batch_size > 1 else ''}"

    def step(self, samples: list[list[int]]) -> Stepped:
        """One step by the mean gradient of the samples, each a sum over its tokens."""
        size, num_computed, loss = self._job.batch_size, 0, 0.0
        ordered = sorted(samples, key=len) if self._job.is_sorted else samples
        for start in range(0, len(ordered), size):
            batch = self._padded(ordered[start : start + size])
            num_computed += batch["input_ids"].numel()
            with self._torch.autocast(self._job.device, self._torch.bfloat16, enabled=self._job.precision != "float32"):
                # The divisor of the summed losses: with it the gradient of all batches is the mean over samples.
                mean = self._model(**batch, use_cache=False, num_items_in_batch=len(samples)).loss
            mean.backward()
            loss += float(mean.detach()) * len(samples)
        self._torch.nn.utils.clip_grad_norm_(self._trained, self._job.max_grad_norm)
        self._adam.step()
        self._adam.zero_grad(set_to_none=True)
        if self._job.device == "cuda":
            self._torch.cuda.synchronize()
        return Stepped(loss=loss, num_computed=num_computed)

    def _padded(self, samples: list[list[int]]) -> dict[str, Any]:
        longest = max(map(len, samples))
        gaps = [longest - len(sample) for sample in samples]
        rows = {
            "input_ids": [[*sample, *[0] * gap] for sample, gap in zip(samples, gaps, strict=True)],
            "attention_mask": [[1] * len(sample) + [0] * gap for sample, gap in zip(samples, gaps, strict=True)],
            "labels": [[*sample, *[IGNORED] * gap] for sample, gap in zip(samples, gaps, strict=True)],
        }
        return {name: self._torch.tensor(values, device=self._job.device) for name, values in rows.items()}


def load(job: TrainingJob) -> Trainer:
    """Read the model and the adapter that the other side began with."""
    torch = require("torch", REMEDY)
    transformers = require("transformers", REMEDY)
    peft = require("peft", REMEDY)
    torch.set_num_threads(job.threads)
    if not Path(job.model).is_dir():
        raise EngineError(f"transformers reads model folders, and {job.model!r} is none; give a folder")
    peak = Peak(torch, job.device)
    dtype = torch.float32 if job.precision == "float32" else torch.bfloat16
    base = transformers.AutoModelForCausalLM.from_pretrained(job.model, dtype=dtype).to(job.device)
    model = peft.PeftModel.from_pretrained(base, job.adapter, is_trainable=True)
    model.train()
    version = f"{transformers.__version__}, peft {peft.__version__}"
    return PeftTrainer(torch, model, job, peak, version=version)


if __name__ == "__main__":
    serve_training(load)
