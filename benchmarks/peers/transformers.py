"""transformers' `generate`, greedy, on the CPU or on the GPU that torch sees."""

from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.channel import Engine, Job, require, serve

REMEDY = "pip install torch transformers accelerate"


class Transformers:
    """A causal language model behind `generate`."""

    def __init__(self, torch: ModuleType, model: Any, *, version: str, precision: str) -> None:
        self._torch = torch
        self._model = model
        self.version = version
        self.precision = precision

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[int]]:
        """Run the prompts as one batch."""
        ids = self._torch.tensor(prompts, device=self._model.device)
        with self._torch.no_grad():
            whole = self._model.generate(
                ids,
                # Without a mask, a random token that happens to be the padding token would be masked out.
                attention_mask=self._torch.ones_like(ids),
                max_new_tokens=num_output_tokens,
                min_new_tokens=num_output_tokens,
                do_sample=False,
                pad_token_id=0,
            )
        tokens: list[list[int]] = whole[:, ids.shape[1] :].tolist()
        return tokens


def load(job: Job) -> Engine:
    """Read the weights, or draw random ones for a folder that holds only `config.json`."""
    torch = require("torch", REMEDY)
    transformers = require("transformers", REMEDY)
    torch.set_num_threads(job.threads)
    dtype = torch.float32 if job.precision == "float32" else torch.bfloat16
    device = "cuda" if torch.cuda.is_available() else "cpu"
    auto = transformers.AutoModelForCausalLM
    if any(Path(job.model).glob("*.safetensors")):
        model = auto.from_pretrained(job.model, dtype=dtype).to(device)
    else:
        with torch.device(device):
            model = auto.from_config(transformers.AutoConfig.from_pretrained(job.model), dtype=dtype)
    return Transformers(torch, model.eval(), version=transformers.__version__, precision=job.precision)


if __name__ == "__main__":
    serve(load)
