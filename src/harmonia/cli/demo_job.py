"""The demonstration's lesson as a job of the server, and the questions that are asked while it runs."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from pathlib import Path

import msgspec
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from harmonia.cli.demo_lesson import Row
from harmonia.cli.demo_report import PUPIL, one_line
from harmonia.cli.demo_talk import ANSWER_TOKENS, People
from harmonia.errors import HarmoniaError, UnavailableError
from harmonia.protocol.client import WorkerClient
from harmonia.protocol.messages import ChatPrompt, Delta, Generate
from harmonia.protocol.sampling import SamplingParams
from harmonia.sdk import AsyncAdaptive
from harmonia.sdk.operations.jobs import Job, TrainingJobStageOutput
from harmonia.server.services.jobs.process import GATEWAY

RECIPE = "sft"
DATASET = "orders"
LEARNING_RATE = 1.5e-3
ROWS_PER_STEP = 8
MAX_SEQUENCE_LENGTH = 512
_LOOK_EVERY_S = 0.5
_ASK_EVERY = 0.1
"""Share of the training."""
_STEP = re.compile(r"train/loss (\S+) .*\bnum_tokens (\d+) .*\bnum_samples (\d+)")

Losses = list[tuple[float, float]]
"""Steps, counted from 1, and their losses per token of the answers."""


class LessonJob:
    """A job of the recipe `sft` that makes the adapter."""

    def __init__(self, adaptive: AsyncAdaptive, base: str, rows: Sequence[Row]) -> None:
        self.losses: Losses = []
        """Of the steps so far."""
        self._adaptive = adaptive
        self._base = base
        self._rows = rows
        self._job = ""

    async def begin(self, folder: Path) -> Job:
        """Upload the rows, from a file in `folder`, and start the job."""
        file = folder / f"{DATASET}.jsonl"
        file.write_bytes(b"\n".join(msgspec.json.encode(_line(row)) for row in self._rows))
        dataset = await self._adaptive.datasets.upload(file, DATASET)
        job = await self._adaptive.jobs.run(
            RECIPE,
            args={
                "model_to_train": self._base,
                "output_model_key": PUPIL,
                "dataset": dataset.key,
                "learning_rate": LEARNING_RATE,
                "samples_per_batch": ROWS_PER_STEP,
                "max_sequence_length": MAX_SEQUENCE_LENGTH,
            },
            name=PUPIL,
        )
        self._job = job.id
        return job

    async def finish(self, asking: Asking, console: Console) -> None:
        """Wait for the job's end, while `asking` asks. UnavailableError if it ends otherwise than well."""
        columns = (TextColumn("learning"), BarColumn(), MofNCompleteColumn(), TextColumn("{task.fields[loss]}"))
        with Progress(*columns, TimeElapsedColumn(), console=console) as progress:
            task = progress.add_task("", total=len(self._rows), loss="")
            try:
                while not (job := await self._look(asking)).has_ended:
                    loss = f"loss {self.losses[-1][1]:.3f}" if self.losses else "starting"
                    progress.update(task, completed=_rows_done(job), loss=loss)
                    await asyncio.sleep(_LOOK_EVERY_S)
                if job.status != "COMPLETED":
                    why = job.error or "it does not say why"
                    raise UnavailableError(f"the job {job.id} ended as {job.status}: {why}")
                progress.update(task, completed=_rows_done(job))
                await asking.finish()
            finally:
                await asking.stop()

    async def _look(self, asking: Asking) -> Job:
        job = await self._adaptive.jobs.get(self._job)
        if job is None:
            raise UnavailableError(f"somebody has deleted the job {self._job}")
        if any(stage.status != "PENDING" for stage in job.stages):
            self.losses = losses_of(await self._adaptive.jobs.logs(job.id))
            if not job.has_ended:
                asking.look(job.id, _rows_done(job) / len(self._rows))
        return job


class Pupil:
    """The adapter while it is made: it lives on its job's worker, to which the server lets who started the job."""

    def __init__(self, adaptive: AsyncAdaptive, api_key: str) -> None:
        self._adaptive = adaptive
        self._address = f"ws{adaptive.base_url.removeprefix('http')}{GATEWAY}"
        self._headers = {"Authorization": f"Bearer {api_key}"}

    async def ask(self, job: str, question: str) -> tuple[int, str] | None:
        """After how many steps, and what it answers, greedily; None if the training was over before the answer was."""
        try:
            return await self._answer(job, question)
        except HarmoniaError:
            found = await self._adaptive.jobs.get(job)
            if found is not None and any(stage.status == "RUNNING" for stage in found.stages):
                raise
            return None

    async def _answer(self, job: str, question: str) -> tuple[int, str]:
        worker = await WorkerClient.connect(self._address, headers={**self._headers, "Adaptive-Job-Id": job})
        try:
            request = Generate(
                id="question",
                model=f"{RECIPE}-{job[-6:]}",
                prompt=ChatPrompt(messages=({"role": "user", "content": question},)),
                sampling=SamplingParams(temperature=0.0, max_tokens=ANSWER_TOKENS),
                stream=False,
            )
            stream, deltas = worker.generate(request), list[Delta]()
            while events := await stream.next_events():
                deltas += [event for event in events if isinstance(event, Delta)]
            return max(delta.version for delta in deltas), "".join(delta.text for delta in deltas)
        finally:
            await worker.close()


class Asking:
    """Asks the base and the pupil the same question, now and then and without holding anything up.

    An answer that differs from the last one is printed, with the number of steps after which it came.
    """

    def __init__(self, people: People, pupil: Pupil, base: str, row: Row, console: Console) -> None:
        self.waits_s: list[float] = []
        """How long people waited for each answer of the base."""
        self._people = people
        self._pupil = pupil
        self._base = base
        self._row = row
        self._console = console
        self._due = 0.0
        self._tasks: list[asyncio.Task[None]] = []
        self._heard: dict[str, str] = {}

    def look(self, job: str, share: float) -> None:
        """Begin to ask if the training is far enough for another question. share: of it, 0 to 1."""
        if share < self._due or not all(task.done() for task in self._tasks):
            return
        self._due = share + _ASK_EVERY
        self._tasks += [asyncio.create_task(self._ask_base()), asyncio.create_task(self._ask_pupil(job))]

    async def finish(self) -> None:
        """Wait for the answers; raises what went wrong with one."""
        await asyncio.gather(*self._tasks)

    async def stop(self) -> None:
        """Wait no longer."""
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    async def _ask_base(self) -> None:
        started = time.perf_counter()
        answer = await self._people.ask(self._base, self._row.order)
        self.waits_s.append(time.perf_counter() - started)
        self._hear("base", "base", answer.text)

    async def _ask_pupil(self, job: str) -> None:
        told = await self._pupil.ask(job, self._row.order)
        if told is not None:
            step, answer = told
            self._hear(PUPIL, f"step {step}", answer)

    def _hear(self, who: str, when: str, answer: str) -> None:
        if self._heard.get(who) == answer:
            return
        self._heard[who] = answer
        mark = "   right" if self._row.is_answered_by(answer) else ""
        self._console.print(Text.assemble((f"{when:>9}  ", "dim"), one_line(answer), (mark, "green")))


def losses_of(log: str) -> Losses:
    """The losses that a job of the recipe `sft` has written into its log, per token."""
    found = (_STEP.search(line) for line in log.splitlines())
    steps = [(float(step[1]), int(step[2]), int(step[3])) for step in found if step is not None]
    return [(number, loss * samples / tokens) for number, (loss, tokens, samples) in enumerate(steps, 1)]


def _rows_done(job: Job) -> int:
    infos = [stage.info for stage in job.stages]
    done = [info.processed_num_samples or 0 for info in infos if isinstance(info, TrainingJobStageOutput)]
    return sum(done)


def _line(row: Row) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": row.order}], "completion": row.ticket}
