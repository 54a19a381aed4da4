"""The demonstration's other story: a draft is cut from the model, learns to propose what it will say, and makes it
faster."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.live import Live
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TaskID, TextColumn, TimeElapsedColumn
from rich.table import Table
from rich.text import Text

from harmonia.cli import demo_report as report
from harmonia.cli import first_models, up
from harmonia.cli.demo_prompts import Prompts, make_prompts
from harmonia.cli.demo_talk import People, Turn, connect
from harmonia.errors import UnavailableError
from harmonia.models.source import open_model
from harmonia.sdk import AsyncAdaptive
from harmonia.sdk.operations.jobs import Job, TrainingJobStageOutput

RECIPE = "specdec_alignment"
DATASET = "questions"
DEFAULT_PROMPTS = 400
LAYERS_SHARE = 7
"""Of so many layers the draft keeps one: four of SmolLM2's thirty. After 38,000 tokens they agree with it on 47 % of
these, where two layers do on 40 %."""
DRAFT_BYTES = 1 << 30
"""The draft before and after, and its checkpoints with the optimizer's averages, of which two exist for a moment."""
NUM_DRAFT_STEPS = 4
ANSWER_TOKENS = 64
_EPOCHS = 1.25
"""Answers to other questions teach more than the same ones again, and cost little beside the training."""
_VALIDATION_SHARE = 0.06
_NUM_SHOWN = 4
_LOOK_EVERY_S = 0.5


class Learned(NamedTuple):
    """What the job's log says."""

    rates: list[float]
    """Acceptance of a first proposal, step by step."""
    measured: list[tuple[float, float]]
    """Acceptance and tokens/s with the draft, before and after."""
    plain_tokens_per_s: float | None
    """Without it."""


@dataclass
class SpeedShow:
    """What happens once the server is up."""

    model: Path
    folder: Path
    console: Console
    num_prompts: int
    picture: Path
    started: float
    base: str = ""
    """Key of the model that is made faster."""
    accelerated: str = ""
    job: str | None = None
    """Id of the job, once there is one."""

    async def run(self, plane: up.Plane) -> None:
        """Train the draft, compare. HarmoniaError or httpx.HTTPError for what fails."""
        (self.base,) = await first_models.deploy(plane.services, [self.model], self._tell)
        assert plane.api_key is not None  # the folder is new, and so is its admin
        prompts = make_prompts(self.num_prompts)
        async with (
            connect(plane.url, plane.api_key) as http,
            AsyncAdaptive(plane.url, plane.api_key, first_models.PROJECT) as adaptive,
        ):
            learned = await self._learn(adaptive, prompts)
            await adaptive.models.deploy(self.accelerated, num_draft_steps=NUM_DRAFT_STEPS, wait=True)
            self.console.print(f"[bold]{escape(self.accelerated)}[/bold] is online beside {escape(self.base)}\n")
            await self._compare(People(http, first_models.PROJECT), prompts.asked)
        _print_learned(self.console, learned)
        curve = [(float(step), rate) for step, rate in enumerate(learned.rates, 1)]
        report.show_curve(self.console, "The draft", "acceptance of its first proposal", curve, self.picture)
        self.console.print(f"\nAll of it took {time.perf_counter() - self.started:.0f} s.")

    def invite(self, plane: up.Plane, is_kept: bool) -> None:
        """Say how to go on."""
        assert self.job is not None
        kept = self.folder if is_kept else None
        made = report.Made(self.accelerated, make_prompts(0).asked[0], self.job)
        report.print_invitation(self.console, plane.url, str(plane.api_key), self.base, made, kept)

    # -------------------------------------------------------------------------------------------------- the draft

    async def _learn(self, adaptive: AsyncAdaptive, prompts: Prompts) -> Learned:
        """Run the job to its end. UnavailableError if it ends otherwise than well."""
        file = self.folder / f"{DATASET}.jsonl"
        file.write_bytes(b"\n".join(msgspec.json.encode(_line(prompt)) for prompt in prompts.learned))
        dataset = await adaptive.datasets.upload(file, DATASET)
        self.accelerated = f"{self.base}_accelerated"
        num_layers = max(1, open_model(self.model).config.num_layers // LAYERS_SHARE)
        args = {
            "target_model": self.base,
            "draft_model": f"layers:{num_layers}",
            "dataset": dataset.key,
            "output_model_key": self.accelerated,
            "num_draft_steps": NUM_DRAFT_STEPS,
            "max_answer_tokens": ANSWER_TOKENS,
            "validation_share": _VALIDATION_SHARE,
            "epochs": _EPOCHS,
        }
        job = await adaptive.jobs.run(RECIPE, args=args, name=self.accelerated)
        self.job = job.id
        _print_plan(self.console, self.base, num_layers, prompts, job)
        return await self._watch(adaptive, job)

    async def _watch(self, adaptive: AsyncAdaptive, job: Job) -> Learned:
        columns = (TextColumn("{task.description:>17}"), BarColumn(), MofNCompleteColumn())
        learned = Learned([], [], None)
        with Progress(*columns, TimeElapsedColumn(), TextColumn("{task.fields[said]}"), console=self.console) as shown:
            tasks: dict[str, TaskID] = {}
            while True:
                found = await adaptive.jobs.get(job.id)
                if found is None:
                    raise UnavailableError(f"somebody has deleted the job {job.id}")
                learned = learned_of(await adaptive.jobs.logs(job.id))
                _show_stages(shown, tasks, found, learned)
                if found.has_ended:
                    break
                await asyncio.sleep(_LOOK_EVERY_S)
        if found.status != "COMPLETED":
            why = found.error or "it does not say why"
            raise UnavailableError(f"the job {job.id} ended as {found.status}: {why}")
        return learned

    # ------------------------------------------------------------------------------------------------- comparing

    async def _compare(self, people: People, questions: Sequence[str]) -> None:
        """Ask both the same, one question at a time, and say whether the draft changed an answer."""
        console = self.console
        console.print("Both are asked what the draft has not learned from, greedily, one question at a time:\n")
        table = Table("question", "tokens/s", "with the draft", "acceptance", "same answer")
        turns: list[tuple[Turn, Turn]] = []
        with Live(table, console=console):
            for question in questions:
                plain = await people.ask(self.base, question, ANSWER_TOKENS)
                drafted = await people.ask(self.accelerated, question, ANSWER_TOKENS)
                turns.append((plain, drafted))
                table.add_row(Text(question), *_row(plain, drafted))
        plain_speed, drafted_speed = (_speed([pair[side] for pair in turns]) for side in (0, 1))
        num_same = sum(plain.text == drafted.text for plain, drafted in turns)
        console.print(
            f"\n{num_same} of {len(turns)} answers are the same to the letter, at [bold]{drafted_speed:.1f}[/bold] "
            f"tokens/s with the draft and {plain_speed:.1f} without: {drafted_speed / plain_speed:.2f} times.\n"
        )

    def _tell(self, line: str) -> None:
        self.console.print(line, markup=False, soft_wrap=True)


def learned_of(log: str) -> Learned:
    """What a job of the recipe `specdec_alignment` has written into its log."""
    plain = _values(log, "val/plain_tokens_per_s")
    measured = zip(_values(log, "val/acceptance_rate"), _values(log, "val/tokens_per_s"), strict=False)
    return Learned(_values(log, "train/acceptance_rate"), list(measured), plain[-1] if plain else None)


def _values(log: str, name: str) -> list[float]:
    return [float(value) for value in re.findall(rf"  {name} (\S+)", log)]


def _show_stages(shown: Progress, tasks: dict[str, TaskID], job: Job, learned: Learned) -> None:
    for stage in job.stages:
        if stage.name not in tasks:
            tasks[stage.name] = shown.add_task(stage.name, total=None, start=False, said="")
        task = tasks[stage.name]
        if stage.status != "PENDING":
            shown.start_task(task)
        if isinstance(stage.info, TrainingJobStageOutput):
            total, done = stage.info.total_num_samples, stage.info.processed_num_samples
            shown.update(task, total=total, completed=done or 0)
    said = dict(zip(("Measuring before", "Measuring after"), (rate for rate, _ in learned.measured), strict=False))
    if learned.rates:
        said["Training"] = learned.rates[-1]
    for name, rate in said.items():
        if name in tasks:
            shown.update(tasks[name], said=f"acceptance {rate:.2f}")


def _print_plan(console: Console, base: str, num_layers: int, prompts: Prompts, job: Job) -> None:
    console.print(
        f"\nNow a draft, cut from {escape(base)} by keeping the first {num_layers} of its layers, learns to propose "
        f"what it will say, from its own answers to {len(prompts.learned)} questions, in a job of the recipe "
        f"[bold]{RECIPE}[/bold], {job.id}:\n"
    )
    for prompt in prompts.learned[:_NUM_SHOWN]:
        console.print(Text(f"  {prompt}"), soft_wrap=True)
    console.print()


def _print_learned(console: Console, learned: Learned) -> None:
    console.print("In the job, on questions that it held out, one at a time:\n")
    table = Table("draft", "acceptance", "tokens/s of an answer")
    if learned.plain_tokens_per_s is not None:
        table.add_row("none", "", f"{learned.plain_tokens_per_s:.1f}")
    for name, (rate, speed) in zip(("as it was cut", "trained"), learned.measured, strict=False):
        table.add_row(name, f"{rate:.3f}", f"{speed:.1f}")
    console.print(table)
    console.print()


def _row(plain: Turn, drafted: Turn) -> tuple[str, str, str, Text]:
    proposed = drafted.accepted_tokens + drafted.rejected_tokens
    rate = f"{drafted.accepted_tokens / proposed:.2f}" if proposed else "nothing proposed"
    same = Text("yes", style="green") if plain.text == drafted.text else Text("no", style="red")
    return f"{plain.tokens_per_s:.1f}", f"{drafted.tokens_per_s:.1f}", rate, same


def _speed(turns: Sequence[Turn]) -> float:
    """Tokens/s of all answers, their first tokens left out."""
    tokens = sum(max(0, turn.completion_tokens - 1) for turn in turns)
    return tokens / max(sum(turn.total_s - turn.first_s for turn in turns), 1e-9)


def _line(prompt: str) -> dict[str, object]:
    return {"messages": [{"role": "user", "content": prompt}]}
