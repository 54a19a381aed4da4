"""llama.cpp through its C interface: a GGUF file with its weights as they are stored."""

from collections.abc import Sequence
from ctypes import create_string_buffer
from types import ModuleType
from typing import Any, NamedTuple

from benchmarks.peers.channel import Engine, EngineError, Job, require, serve

REMEDY = "pip install llama-cpp-python (it compiles for the processor that it is installed on)"
DESCRIPTION_BYTES = 256


class Slot(NamedTuple):
    """One token of a batch; only wanted ones get logits."""

    token: int
    position: int
    sequence: int
    wanted: bool


class LlamaCpp:
    """A model, and a context for as many sequences as the last call had."""

    def __init__(self, llama: ModuleType, model: Any, job: Job) -> None:
        self._llama = llama
        self._model = model
        self._job = job
        self._num_sequences = 0
        self._context: Any = None
        self._batch: Any = None
        self._sampler = llama.llama_sampler_init_greedy()
        self.version: str = llama.__version__
        description = create_string_buffer(DESCRIPTION_BYTES)
        llama.llama_model_desc(model, description, DESCRIPTION_BYTES)
        # "llama 135M Q4_1": the last word names the stored precision.
        self.precision = description.value.decode().split()[-1]

    def generate(self, prompts: list[list[int]], num_output_tokens: int) -> list[list[int]]:
        """Prefill all prompts in full batches, then decode one token of each at a time."""
        self._make_room(len(prompts))
        tokens: list[list[int]] = [[] for _ in prompts]
        pending = [
            Slot(token, position, sequence, position == len(prompt) - 1)
            for sequence, prompt in enumerate(prompts)
            for position, token in enumerate(prompt)
        ]
        limit = self._llama.llama_n_batch(self._context)
        for start in range(0, len(pending), limit):
            self._decode(pending[start : start + limit], tokens)
        for step in range(num_output_tokens - 1):
            self._decode([Slot(t[-1], len(prompts[i]) + step, i, True) for i, t in enumerate(tokens)], tokens)
        return tokens

    def _make_room(self, num_sequences: int) -> None:
        if num_sequences == self._num_sequences:
            self._llama.llama_memory_clear(self._llama.llama_get_memory(self._context), False)
            return
        if self._context is not None:
            self._llama.llama_batch_free(self._batch)
            self._llama.llama_free(self._context)
        params = self._llama.llama_context_default_params()
        params.n_ctx = num_sequences * self._job.max_length
        params.n_seq_max = num_sequences
        params.n_threads = params.n_threads_batch = self._job.threads
        self._context = self._llama.llama_init_from_model(self._model, params)
        if not self._context:
            raise EngineError(f"llama.cpp has no room for {num_sequences} sequences; ask for fewer with --n")
        self._batch = self._llama.llama_batch_init(self._llama.llama_n_batch(self._context), 0, 1)
        self._num_sequences = num_sequences

    def _decode(self, slots: Sequence[Slot], tokens: list[list[int]]) -> None:
        batch = self._batch
        batch.n_tokens = len(slots)
        for i, slot in enumerate(slots):
            batch.token[i], batch.pos[i], batch.logits[i] = slot.token, slot.position, slot.wanted
            batch.n_seq_id[i], batch.seq_id[i][0] = 1, slot.sequence
        status = self._llama.llama_decode(self._context, batch)
        if status != 0:
            raise EngineError(f"llama.cpp could not decode {len(slots)} tokens, status {status}; ask for less work")
        for i, slot in enumerate(slots):
            if slot.wanted:
                tokens[slot.sequence].append(self._llama.llama_sampler_sample(self._sampler, self._context, i))


def load(job: Job) -> Engine:
    """Map the file into memory."""
    llama = require("llama_cpp", REMEDY)
    llama.llama_backend_init()
    model = llama.llama_model_load_from_file(job.model.encode(), llama.llama_model_default_params())
    if not model:
        raise EngineError(f"llama.cpp cannot read {job.model!r}; give a GGUF file of a family that it knows")
    return LlamaCpp(llama, model, job)


if __name__ == "__main__":
    serve(load)
