"""Do all paths see the same model? Log-probabilities reported while sampling, scored afterwards, and read by a loss."""

from __future__ import annotations

import random
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch

from benchmarks.driver import Driver
from benchmarks.machine import Record
from benchmarks.own import answer
from benchmarks.peers.channel import EngineError
from benchmarks.work import random_tokens
from harmonia.config import CacheConfig, EngineConfig, SchedulerConfig
from harmonia.engine.requests import ScoreRequest, SequenceOutput, pack_ids
from harmonia.protocol.instances import AdapterSpec, SpawnSpec
from harmonia.protocol.losses import LanguageModelling
from harmonia.protocol.sampling import SamplingParams
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.samples import Sample

BOUND = 1e-5
BASE, ADAPTERS = "base", ("one", "two")
Request = tuple[str, list[int], dict[str, object]]
"""Model, tokens, and further fields of a `SequenceRequest`."""
PATHS = ("sampled", "scored", "trained")
# Far enough from where they begin that a wrong adapter cannot hide.
TRAINING_STEPS, TRAINING_TOKENS, TRAINING_LR = 3, 48, 3e-3


@dataclass(frozen=True, kw_only=True)
class Job:
    """What to compare on."""

    model: str
    precision: str
    device: str
    threads: int
    rank: int
    num_input: int
    num_output: int
    seed: int
    vocab: int


@dataclass(frozen=True, kw_only=True)
class Case:
    """How the sequences of one row run."""

    name: str
    models: tuple[str, ...]
    """Of each sequence."""
    is_batched: bool = False
    """All at once; else one after the other."""
    is_cached: bool = False
    """The prompts were computed before."""
    is_chunked: bool = False
    """Prompts are computed in four pieces, beside each other."""


CASES = (
    Case(name="base", models=(BASE,) * 2),
    Case(name="adapter", models=("one",) * 2),
    Case(name="mixed adapters", models=(BASE, "one", "two", "one", BASE, "two"), is_batched=True),
    Case(name="prefix hit", models=(BASE, "one"), is_cached=True),
    Case(name="chunked prefill", models=(BASE, "one", "two"), is_batched=True, is_chunked=True),
    Case(name="decode batch", models=(BASE,) * 16, is_batched=True),
)


@dataclass(kw_only=True)
class Told:
    """One sequence and its log-probabilities of the generated tokens on the three paths."""

    model: str
    prompt: list[int]
    generated: list[int]
    sampled: list[float]
    scored: list[float]
    trained: list[float]

    @property
    def token_ids(self) -> list[int]:
        """All of it."""
        return self.prompt + self.generated


class Bench:
    """One runtime, set up for one case."""

    def __init__(self, job: Job, case: Case, *, invariant: bool) -> None:
        self._job, self._case = job, case
        self._rng = random.Random(f"{job.seed}/{case.name}")
        chunk = max(1, job.num_input // 4) if case.is_chunked else None
        self._driver = Driver(
            EngineConfig(
                device=job.device,  # type: ignore[arg-type]  # the plan refuses what it does not know
                precision=job.precision,  # type: ignore[arg-type]
                invariant=invariant,
                num_threads=job.threads,
                cache=CacheConfig(prefix_caching=case.is_cached),
                scheduler=SchedulerConfig(max_batch_tokens=chunk, max_prefill_tokens=chunk),
            )
        )

    def spawn(self) -> None:
        """Load the model, and train the adapters a little, each on samples of its own."""
        job = self._job
        size = max(TRAINING_TOKENS, job.num_input + job.num_output)
        for index, name in enumerate(ADAPTERS):
            adapter = AdapterSpec(rank=job.rank, seed=index)
            spec = SpawnSpec(
                path=job.model,
                mode="training",
                max_batch_size=size,
                use_adapter=True,
                adapter=adapter,
                kv_cache_len=len(self._case.models) * 2 * size,
            )
            self._driver.spawn(name, spec)
            for _ in range(TRAINING_STEPS):
                sample = self._driver.train(name, random_tokens(self._rng, TRAINING_TOKENS, job.vocab))
                self._driver.finish(sample, self._driver.optim_step(name, TRAINING_LR))
        self._driver.spawn(BASE, SpawnSpec(path=job.model))

    def compare(self) -> list[Told]:
        """Generate, score, and run the loss."""
        prompts = [random_tokens(self._rng, self._job.num_input, self._job.vocab) for _ in self._case.models]
        if self._case.is_cached:
            self._generate(prompts)
        told = self._generate(prompts)
        self._score(told)
        self._train(told)
        return told

    def _generate(self, prompts: list[list[int]]) -> list[Told]:
        told, requests = [], list[Request]()
        for index, (model, prompt) in enumerate(zip(self._case.models, prompts, strict=True)):
            sampling = SamplingParams(seed=index, max_tokens=self._job.num_output, ignore_eos=True, logprobs=0)
            requests.append((model, prompt, {"sampling": sampling}))
        for (model, prompt, _), outputs in zip(requests, self._run(requests), strict=True):
            tokens = [token for output in outputs for token in output.token_ids]
            logprobs = [float(str(score.logprob)) for output in outputs for score in output.scores]
            told.append(Told(model=model, prompt=prompt, generated=tokens, sampled=logprobs, scored=[], trained=[]))
        return told

    def _score(self, told: Sequence[Told]) -> None:
        requests = list[Request]()
        for one in told:
            rows = range(len(one.prompt) - 1, len(one.token_ids) - 1)
            score = ScoreRequest(rows=pack_ids(list(rows)), targets=pack_ids(one.generated))
            requests.append((one.model, one.token_ids, {"score": score}))
        for one, outputs in zip(told, self._run(requests), strict=True):
            values = outputs[-1].values
            assert values is not None
            one.scored = np.frombuffer(values, "<f4").tolist()

    def _train(self, told: Sequence[Told]) -> None:
        """A micro-batch as the runtime would make it, reports kept; its gradients go where they always go."""
        engine = self._driver.engine(BASE)
        trainers = engine.training.trainers
        items = []
        for one in told:

            def report(loss: torch.Tensor, values: tuple[torch.Tensor, ...], one: Told = one) -> None:
                one.trained = values[0].detach().float().cpu().tolist()

            weights = [0.0] * len(one.prompt) + [1.0] * len(one.generated)
            slot = trainers[one.model].weights.slot if one.model in trainers else None
            items.append(Item((Sample.from_weighted(one.token_ids, weights),), LanguageModelling(), slot, None, report))
        for _ in MicroBatch(engine.backbone.decoder, items, num_kept=engine.plan.num_kept).run():
            pass

    def _run(self, requests: Sequence[Request]) -> list[list[SequenceOutput]]:
        """All at once or in turn, as the case says; outputs in the order of the requests."""
        groups = [requests] if self._case.is_batched else [[request] for request in requests]
        results: dict[int, list[SequenceOutput]] = {}
        for group in groups:
            open_ids = set()
            for model, tokens, settings in group:
                seq_id = self._driver.add(model, tokens, **settings)
                open_ids.add(seq_id)
                results[seq_id] = []
            while open_ids:
                for output in self._driver.step():
                    results[output.seq_id].append(output)
                    if output.finish_reason is not None or output.values is not None:
                        open_ids.discard(output.seq_id)
        return list(results.values())


def run(**fields: object) -> list[Record]:
    """A record for each case, as it is and in invariant mode."""
    job = Job(**fields)  # type: ignore[arg-type]  # a job that came through JSON
    records = []
    for invariant in (False, True) if can_be_invariant(job.device, job.precision) else (False,):
        for case in CASES:
            bench = Bench(job, case, invariant=invariant)
            bench.spawn()
            records.append(agreement_record(job, case, bench.compare(), invariant=invariant))
    return records


def can_be_invariant(device: str, precision: str) -> bool:
    """Whether there is an invariant mode, which a plan refuses elsewhere."""
    return precision in ("float32", "int8") if device == "cpu" else precision != "int8"


def agreement_record(job: Job, case: Case, told: Sequence[Told], *, invariant: bool = False) -> Record:
    """Return the differences of one case; the bound is for fp32 on a CPU, and 0 in invariant mode anywhere."""
    sampled, scored, trained = (np.array([v for one in told for v in getattr(one, name)]) for name in PATHS)
    if not len(sampled) == len(scored) == len(trained) == len(told) * job.num_output:
        raise EngineError(f"{case.name}: the paths gave {len(sampled)}, {len(scored)} and {len(trained)} values")
    pairs = {
        "sampled_scored": np.abs(sampled - scored),
        "sampled_loss": np.abs(sampled - trained),
        "scored_loss": np.abs(scored - trained),
    }
    record: Record = {
        "precision": job.precision,
        "device": job.device,
        "mode": "invariant" if invariant else "plain",
        "case": case.name,
        "num_tokens": len(sampled),
    }
    for name, differences in pairs.items():
        record |= {f"{name}_max": float(differences.max()), f"{name}_mean": float(differences.mean())}
    bound = 0.0 if invariant else BOUND if (job.device, job.precision) == ("cpu", "float32") else None
    worst = max(record[f"{name}_max"] for name in pairs)
    return record | {"bound": bound, "ok": None if bound is None else worst <= bound}


if __name__ == "__main__":
    answer(run)
