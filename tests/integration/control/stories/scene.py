"""What a story takes place in: a server, a model, a folder of files, services of other people."""

from __future__ import annotations

import json
import shutil
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from tests.integration.control.receiving import Listener

MODEL = "tiny"
"""The base model, which the server was started with; it is online in another project."""
HUB_MODEL = "Qwen/Qwen3-0.6B"
"""The same model's name on the hub; the published SDK knows which names there are."""
MESSAGES: list[Any] = [{"role": "user", "content": "What is the colour of the sky?"}]
LENGTH = "async def grade(thread) -> float:\n    return float(len(thread.last_content()))"
DEADLINE_S = 100
REPORT = """
import asyncio
from harmonia.client import StringThread
from harmonia.client.artifacts import EvaluationArtifact
from harmonia.client.grades import EvalSample, EvalSampleInteraction, Grade
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main
from pydantic import Field

class Config(InputConfig):
    value: float = Field(ge=0, le=1, description="What every answer is worth.")
    seconds: int = Field(0, ge=0, description="How long to wait.")

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    await asyncio.sleep(config.seconds)
    thread = StringThread([("user", "?"), ("assistant", "!")])
    grade = Grade(value=config.value, grader_key="worth", reasoning="as it was asked for")
    EvaluationArtifact("worth", ctx).add_samples([EvalSample(EvalSampleInteraction(thread, "tiny"), [grade], "rows")])
    print("reported")
"""
HALF_WAY = """
import asyncio, uuid
from harmonia.client.parameters import Model
from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

class Config(InputConfig):
    model: Model

@recipe_main
async def main(config: Config, ctx: RecipeContext):
    model = await (await config.model.to_builder(ctx)).with_adapter(rank=2).spawn_train("pupil", 64)
    name = await model.save(f"checkpoints/{ctx.job.job_id}/checkpoint-50")
    ctx.job.report_checkpoint(str(uuid.uuid4()), 1, 50.0, {"tiny": name}, {}, "learn")
    await asyncio.sleep(600)
"""
"""What trainers do at a checkpoint."""


@dataclass(frozen=True)
class Scene:
    """One story's own."""

    name: str
    """What the story calls its project, and where names of teams, people and models begin."""
    url: str
    api_key: str
    folder: Path
    """Empty at the beginning."""
    model: Path
    """The folder of the base model."""
    adapter: Path
    """A folder with an adapter for it."""
    listener: Listener
    """Keeps what arrives at its webhook."""
    rewards: str
    """The address of a reward server."""

    def named_adapter(self) -> Path:
        """The adapter, with the path of its base model in it."""
        folder = shutil.copytree(self.adapter, self.folder / "adapter")
        config = folder / "adapter_config.json"
        described = {**json.loads(config.read_text()), "base_model_name_or_path": str(self.model)}
        config.write_text(json.dumps(described))
        return folder

    def questions(self, name: str, count: int = 8, padding: int = 0) -> Path:
        """A file with so many questions and answers."""
        rows = (
            {"messages": [{"role": "user", "content": f"What is {n}?" + "x" * padding}], "completion": "Blue."}
            for n in range(count)
        )
        return self.written(f"{name}.jsonl", "".join(json.dumps(row) + "\n" for row in rows))

    def written(self, name: str, text: str) -> Path:
        """A file."""
        file = self.folder / name
        file.write_text(text)
        return file

    def lesson(self, dataset: str, result: str) -> dict[str, Any]:
        """Arguments of the built-in recipe `sft`."""
        return {
            "model_to_train": MODEL,
            "dataset": dataset,
            "output_model_key": result,
            "max_sequence_length": 256,
            "samples_per_batch": 4,
        }


def until(found: Callable[[], Any], holds: Callable[[Any], bool]) -> Any:
    """What is found once something holds of it."""
    give_up = time.monotonic() + DEADLINE_S
    while not holds(now := found()):
        assert time.monotonic() < give_up, f"it never came: {now}"
        time.sleep(0.1)
    return now
