"""Where the time of a step goes: kernels, gaps between them, the host. A torch profiler trace summed up as text."""

from __future__ import annotations

import re
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from statistics import mean

import torch
from torch.profiler import ProfilerActivity, profile

from benchmarks.gpu.drafting import DRAFTED, DRAFTS, NUM_STEPS, DraftBench, drafted
from benchmarks.gpu.job import Job, Rows
from benchmarks.gpu.models import opened
from benchmarks.gpu.serving import BASE, Bench, config_of, spec_of
from benchmarks.gpu.training import NAME, TrainBench, train_job
from harmonia.engine import runner
from harmonia.engine.engine import Engine

STEPS = 4
HOST_STEPS = 30
NUM_OUTPUT = 3 * STEPS + HOST_STEPS + 20
MAX_KERNELS = 28
MAX_GAPS = 8
MAX_NAME = 90
GAP_US = 1.0


@dataclass(frozen=True)
class Kernel:
    """One launch on the device; times in microseconds."""

    name: str
    start: float
    end: float

    @property
    def us(self) -> float:
        """How long it ran."""
        return self.end - self.start


@dataclass
class HostTime:
    """Seconds that parts of a step took on the host, and how often they ran."""

    spent: dict[str, float] = field(default_factory=dict)

    def timed(self, name: str, call: Callable[..., object]) -> Callable[..., object]:
        """The same function, its time added up."""

        def run(*args: object, **kwargs: object) -> object:
            began = time.perf_counter()
            try:
                return call(*args, **kwargs)
            finally:
                self.spent[name] = self.spent.get(name, 0.0) + time.perf_counter() - began

        return run


@contextmanager
def host_times(engine: Engine) -> Iterator[HostTime]:
    """Add up what schedule, launch, read (mostly waiting for the device) and finish take."""
    host = HostTime()
    places = (
        (engine._scheduler, "schedule"),
        (engine._runner, "launch"),
        (runner.Launched, "read"),
        (engine, "_finish"),
    )
    old = [(place, name, getattr(place, name)) for place, name in places]
    for place, name, call in old:
        if isinstance(place, type):
            setattr(place, name, host.timed(name, call))
        else:
            place.__dict__[name] = host.timed(name, call)
    try:
        yield host
    finally:
        for place, name, call in old:
            if isinstance(place, type):
                setattr(place, name, call)
            else:
                del place.__dict__[name]


def trace(job: Job, rows: Rows, model: str) -> None:
    """The traces that were asked for, as texts."""
    if {"decode", "prefill"} & set(job.traces):
        with opened(model, BASE, spec_of(job), config_of(job)) as driver:
            _trace_serving(Bench(driver, job), rows, model)
    if "specdec" in job.traces and model in DRAFTS:
        with drafted(job, model) as drafting:
            for n in _traced(job):
                key = f"{model}/trace specdec n={n}"
                with rows.trying(key):
                    rows.note(key, _specdec(drafting, n))
    if "train" in job.traces:
        key = f"{model}/trace train"
        with rows.trying(key), train_job(job, model, 0) as bench_train:
            rows.note(key, _train(bench_train, job.device))


def _trace_serving(bench: Bench, rows: Rows, model: str) -> None:
    job = bench.job
    if "decode" in job.traces:
        for n in _traced(job):
            key = f"{model}/trace decode n={n}"
            with rows.trying(key):
                rows.note(key, _decode(bench, n))
    if "prefill" in job.traces:
        key = f"{model}/trace prefill"
        with rows.trying(key):
            rows.note(key, _prefill(bench))


def _traced(job: Job) -> Sequence[int]:
    return [n for n in job.counts if n in (1, 64)] or job.counts


def _decode(bench: Bench, n: int) -> str:
    bench.warm_up(n)
    return _steps(bench, bench.start(bench.prompts.draw(n, bench.job.num_input), NUM_OUTPUT))


def _specdec(bench: DraftBench, n: int) -> str:
    """All proposals are right, so that every step makes as many as are allowed, whatever they cost."""
    num_output = NUM_OUTPUT * (1 + NUM_STEPS)
    answers = [answer.tolist() for answer in bench.prompts.draw(n, num_output)]
    with bench.replaying(answers, acceptance=1.0) as replay:
        for _ in range(2):  # the first time to learn what steps cost
            ids = bench.start(bench.prompts.draw(n, bench.job.num_input), num_output, (DRAFTED,))
            replay.follow(ids)
            text = _steps(bench, ids)
    return text


def _steps(bench: Bench, ids: Sequence[int]) -> str:
    """Of requests that were handed over: some steps timed on the host, some profiled; then they are dropped."""
    job = bench.job
    while any(item.num_generated < 3 for item in bench.engine._sequences.values()):
        bench.driver.step()
    with host_times(bench.engine) as host:
        began = time.perf_counter()
        for _ in range(HOST_STEPS):
            bench.driver.step()
        wall_s = (time.perf_counter() - began) / HOST_STEPS
    kernels = profiled(lambda: [bench.driver.step() for _ in range(STEPS)], job.device)
    for seq_id in ids:
        bench.driver.runtime.cancel(seq_id)
    while bench.engine.has_work:
        bench.driver.step()
    spent = {name: seconds / HOST_STEPS * 1e6 for name, seconds in host.spent.items()}
    lines = [
        f"{wall_s * 1e3:.3f} ms a step without the profiler; host {wall_s * 1e6 - spent.get('read', 0):.0f} us"
        f" of it: schedule {spent.get('schedule', 0):.0f}, launch {spent.get('launch', 0):.0f}, finish without waiting "
        f"{spent.get('_finish', 0) - spent.get('read', 0):.0f}, read (waits for the device) {spent.get('read', 0):.0f}"
    ]
    num_layers = _num_layers(bench.engine) * STEPS
    layer, end = one_layer(kernels, num_layers), step_end(kernels, num_layers)
    return "\n".join([*lines, *summary(kernels, STEPS), *layer, *end])


def _prefill(bench: Bench) -> str:
    """Four prompts of 4096 tokens: two steps of 8192."""
    n, size = (4, 4096) if not bench.job.is_tiny else (2, 64)
    bench.run(bench.prompts.draw(n, size), 1)
    prompts = bench.prompts.draw(n, size)
    kernels = profiled(lambda: bench.run(prompts, 1), bench.job.device)
    return "\n".join([*summary(kernels, 2), *one_layer(kernels, 2 * _num_layers(bench.engine))])


def _train(bench: TrainBench, device: str) -> str:
    for _ in range(2):
        bench.step()
    walls = [bench.step() for _ in range(2)]
    kernels = profiled(bench.step, device)
    lines = [
        f"{bench.title}: {mean(walls) * 1e3:.1f} ms without the profiler, {bench.num_tokens / mean(walls):.0f} tok/s"
    ]
    num_layers = _num_layers(bench.driver.engine(NAME))
    layers = [*one_layer(kernels, num_layers), *one_layer(kernels, num_layers, last=True)]
    return "\n".join([*lines, *summary(kernels, 1), *layers])


def _num_layers(engine: Engine) -> int:
    return len(engine.backbone.decoder.layers)


def profiled(work: Callable[[], object], device: str) -> list[Kernel]:
    """What ran on the device, in order; on a CPU the outermost operations."""
    on_gpu = device == "cuda"
    if on_gpu:
        torch.cuda.synchronize()
    # On a GPU the device only: watching the host would slow it down, and so widen the gaps.
    activities = [ProfilerActivity.CUDA if on_gpu else ProfilerActivity.CPU]
    with profile(activities=activities) as taken:
        work()
        if on_gpu:
            torch.cuda.synchronize()
    wanted = torch.autograd.DeviceType.CUDA if on_gpu else torch.autograd.DeviceType.CPU
    events = [event for event in taken.events() or [] if event.device_type == wanted]
    if on_gpu:
        events = [event for event in events if not getattr(event, "is_user_annotation", False)]
    else:
        events = [event for event in events if event.cpu_parent is None]
    kernels = [Kernel(short(event.name), event.time_range.start, event.time_range.end) for event in events]
    return sorted(kernels, key=lambda kernel: kernel.start)


def short(name: str) -> str:
    """A kernel's name without what only the compiler needs."""
    name = re.sub(r"^void ", "", name)
    name = re.sub(r"\(anonymous namespace\)::|at::native::|cutlass::|std::", "", name)
    name = re.sub(r"\(.*\)( \[clone.*)?$", "", name) if len(name) > MAX_NAME else name
    return name if len(name) <= MAX_NAME else f"{name[: MAX_NAME - 25]}...{name[-22:]}"


def summary(kernels: Sequence[Kernel], steps: int) -> list[str]:
    """Totals, kernels by name, and the gaps between them; everything per step."""
    if not kernels:
        return ["no kernels were seen"]
    gaps = list(_gaps(kernels))
    span = max(kernel.end for kernel in kernels) - kernels[0].start
    idle = sum(us for us, _, _ in gaps)
    busy = span - idle
    by_name: dict[str, list[float]] = {}
    for kernel in kernels:
        by_name.setdefault(kernel.name, []).append(kernel.us)
    lines = [
        f"under the profiler: {span / steps / 1e3:.3f} ms a step, device busy {busy / steps / 1e3:.3f} ms "
        f"({busy / span:.1%}), idle {idle / steps / 1e3:.3f} ms in {len(gaps) / steps:.0f} gaps, "
        f"{len(kernels) / steps:.0f} launches a step",
        f"{'count':>7} {'us/step':>10} {'share':>6} {'mean us':>9}  kernel",
    ]
    ranked = sorted(by_name.items(), key=lambda entry: -sum(entry[1]))
    for name, times in ranked[:MAX_KERNELS]:
        total = sum(times)
        lines.append(f"{len(times) / steps:7.1f} {total / steps:10.1f} {total / busy:6.1%} {mean(times):9.2f}  {name}")
    others = [us for _, times in ranked[MAX_KERNELS:] for us in times]
    if others:
        lines.append(
            f"{len(others) / steps:7.1f} {sum(others) / steps:10.1f} {sum(others) / busy:6.1%}            others"
        )
    worst = sorted(gaps, key=lambda gap: -gap[0])[: MAX_GAPS * steps : steps]
    lines += [f"gap {us:8.1f} us: {before} -> {after}" for us, before, after in worst]
    return lines


def _gaps(kernels: Sequence[Kernel]) -> Iterator[tuple[float, str, str]]:
    """Times with nothing on the device, and what ran before and after."""
    last = kernels[0]
    for kernel in kernels[1:]:
        if kernel.start - last.end > GAP_US:
            yield kernel.start - last.end, last.name, kernel.name
        if kernel.end > last.end:
            last = kernel


def one_layer(kernels: Sequence[Kernel], num_layers: int, *, last: bool = False) -> list[str]:
    """The launches of one layer, in order: from one launch of something that runs once a layer to the next.

    last: of what begins last among all that runs once a layer, which is in the backward pass if there is one.
    """
    places = _once_a_layer(kernels, num_layers, last=last)
    at = len(places) * 5 // 8  # in the middle of a step, not between two
    return ["one layer:", *_listed(kernels[places[at] : places[at + 1]])] if len(places) > at + 1 else []


def step_end(kernels: Sequence[Kernel], num_layers: int) -> list[str]:
    """The launches from the last layer of a step to the first layer of the next, of an even number of steps."""
    places = _once_a_layer(kernels, num_layers, last=False)
    at = len(places) // 2
    return ["from step to step:", *_listed(kernels[places[at - 1] : places[at] + 1])] if places else []


def _once_a_layer(kernels: Sequence[Kernel], num_layers: int, *, last: bool) -> list[int]:
    counts = Counter(kernel.name for kernel in kernels)
    once = [name for name, count in counts.items() if count == num_layers]
    return [index for index, kernel in enumerate(kernels) if kernel.name == once[-last]] if once else []


def _listed(kernels: Sequence[Kernel]) -> Iterator[str]:
    began = end = kernels[0].start
    for kernel in kernels:
        gap = max(0.0, kernel.start - end)
        yield f"{kernel.start - began:9.1f} {kernel.us:8.1f} us, gap {gap:5.1f}  {kernel.name}"
        end = kernel.end
