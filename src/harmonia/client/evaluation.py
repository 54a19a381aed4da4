"""Evaluations for people: scores by model and grader, and a page that shows every sample."""

from __future__ import annotations

import html
import inspect
import statistics
from collections.abc import Iterable, Sequence
from datetime import UTC, datetime
from pathlib import Path

from pydantic_core import to_json

from harmonia.client.grades import EvalSample, Grade
from harmonia.client.table import Table
from harmonia.errors import InvalidRequestError
from harmonia.threads import StringThread

_PAGE = """<!doctype html>
<meta charset="utf-8">
<title>{title}</title>
<style>
  body {{ font-family: sans-serif }}
  table {{ border-collapse: collapse; margin-bottom: 2em }}
  td, th {{ border: 1px solid #ccc; padding: .4em; text-align: left; vertical-align: top; white-space: pre-wrap }}
</style>
<h1>{title}</h1>
{scores}
{samples}
"""


def stringify_thread(thread: StringThread, sep: str = "\n\n") -> str:
    """The conversation as text: `[role]` and what it visibly said, turns separated by `sep`."""
    return sep.join(f"[{role}]\n{content}" for role, content in thread.get_turns())


def extract_model_key(model_path: str | None = None) -> str:
    """The key or name in a model's address, without scheme and query, which may hold a secret; "unknown" for none."""
    return (model_path or "").split("://")[-1].split("?")[0].strip("/") or "unknown"


def aggregate_scores(eval_samples: Iterable[EvalSample]) -> dict[str, dict[str, dict[str, float]]]:
    """By model key and grader key: count, mean, std (n - 1; 0 for one sample), min and max of the grades."""
    values: dict[str, dict[str, list[float]]] = {}
    for sample in eval_samples:
        of_model = values.setdefault(extract_model_key(sample.interaction.source), {})
        for grade in sample.grades:
            of_model.setdefault(grade.grader_key, []).append(grade.value)
    return {model: {key: _summary(scores) for key, scores in graders.items()} for model, graders in values.items()}


def _summary(scores: Sequence[float]) -> dict[str, float]:
    return {
        "count": len(scores),
        "mean": statistics.fmean(scores),
        "std": statistics.stdev(scores) if len(scores) > 1 else 0.0,
        "min": min(scores),
        "max": max(scores),
    }


def score_table(eval_samples: Iterable[EvalSample]) -> Table:
    """`aggregate_scores` as a table of one row per model and grader."""
    table = Table(["model", "grader", "count", "mean", "std", "min", "max"])
    for model, graders in aggregate_scores(eval_samples).items():
        for key, summary in graders.items():
            count, *floats = summary.values()
            table.add_row([model, key, count, *(f"{value:.4g}" for value in floats)])
    return table


def sample_table(eval_samples: Sequence[EvalSample]) -> Table:
    """One row per sample: where it comes from, the conversation, and each grader's score and reasoning."""
    keys = sorted({grade.grader_key for sample in eval_samples for grade in sample.grades})
    table = Table(["id", "dataset", "model", "conversation", *keys])
    for sample in eval_samples:
        grades = {grade.grader_key: _show(grade) for grade in sample.grades}
        where = [sample.id, sample.dataset_key, extract_model_key(sample.interaction.source)]
        table.add_row([*where, stringify_thread(sample.interaction.thread), *(grades.get(key, "") for key in keys)])
    return table


def _show(grade: Grade) -> str:
    score = f"{grade.value:.4g}"
    return f"{score}\n{grade.reasoning}" if grade.reasoning else score


def save_detailed_eval_table(eval_samples: Sequence[EvalSample], output_dir: str | Path | None = None) -> Path:
    """Write aggregate_scores.json, evaluation_samples.html and metadata.json; the folder that holds them.

    It is `adaptive_eval_samples/<time>` in `output_dir`, by default beside the file of the first caller that is not
    ours (in the working directory for a caller without one). InvalidRequestError without samples.
    """
    if not eval_samples:
        raise InvalidRequestError("there are no evaluation samples to save; add at least one")
    now = datetime.now(UTC)
    parent = _callers_folder() if output_dir is None else Path(output_dir)
    folder = parent / "adaptive_eval_samples" / now.strftime("%Y-%m-%d_%H-%M-%S-%f")
    folder.mkdir(parents=True)
    title = f"Evaluation of {now:%Y-%m-%d %H:%M:%S} UTC"
    page = _PAGE.format(
        title=html.escape(title),
        scores=score_table(eval_samples).to_html_table(),
        samples=sample_table(eval_samples).to_html_table(),
    )
    (folder / "evaluation_samples.html").write_text(page, encoding="utf-8")
    _write_json(folder / "aggregate_scores.json", aggregate_scores(eval_samples))
    _write_json(folder / "metadata.json", _about(eval_samples, now))
    return folder


def _about(eval_samples: Sequence[EvalSample], now: datetime) -> dict[str, object]:
    return {
        "created_at": now.isoformat(),
        "num_samples": len(eval_samples),
        "dataset_keys": sorted({sample.dataset_key for sample in eval_samples}),
        "model_keys": sorted({extract_model_key(sample.interaction.source) for sample in eval_samples}),
        "grader_keys": sorted({grade.grader_key for sample in eval_samples for grade in sample.grades}),
    }


def _write_json(path: Path, value: object) -> None:
    path.write_bytes(to_json(value, indent=2, inf_nan_mode="null") + b"\n")


def _callers_folder() -> Path:
    frame = inspect.currentframe()
    while frame is not None and frame.f_globals.get("__name__", "").startswith("harmonia."):
        frame = frame.f_back
    file = Path(frame.f_code.co_filename) if frame is not None else None
    return file.parent if file is not None and file.is_file() else Path.cwd()
