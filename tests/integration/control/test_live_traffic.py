"""A model is made faster on what people asked it: stored interactions become the data set of `specdec_alignment`."""

from __future__ import annotations

from pathlib import Path

from adaptive_sdk import Adaptive

from tests.integration.control.asking import data, make_project
from tests.integration.control.conftest import Plane
from tests.integration.control.test_jobs import ended, log_of


def test_a_draft_learns_from_stored_interactions(plane: Plane, adaptive: Adaptive, tiny: Path) -> None:
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    add = 'mutation ($path: String!) { addModel(input: {path: $path, name: "Tiny", key: "tiny"}) { id } }'
    data(plane, add, {"path": str(tiny)})
    for number in range(12):
        adaptive.interactions.create(
            messages=[{"role": "user", "content": f"What is {number}?"}], completion=f"It is {number}."
        )
    create = "mutation ($i: DatasetCreateFromFilters!) { createDatasetFromFilters(input: $i) { key } }"
    chosen = {"fromFilters": {"filters": {"project": "lab"}, "exclude": []}}
    for kind in ("PROMPT", "PROMPT_COMPLETION"):
        wish = {"project": "lab", "name": kind, "key": kind, "kind": kind, "completionQuery": chosen}
        assert data(plane, create, {"i": wish})["createDatasetFromFilters"]["key"] == kind

    args = {"target_model": "tiny", "draft_model": "layers:1", "max_answer_tokens": 8, "max_sequence_length": 256}
    first = adaptive.jobs.run("specdec_alignment", 1, args={**args, "dataset": "PROMPT", "steps": 2})
    job = ended(adaptive, first.id)
    assert job.status.value == "COMPLETED", (job.error, log_of(plane, first.id))
    assert [stage.name for stage in job.stages] == ["Measuring before", "Answering", "Training", "Measuring after"]
    uris = [artifact.uri for artifact in job.artifacts if artifact.kind.value == "MODEL"]
    assert uris == ["model_registry://tiny_accelerated"]
    assert "train/acceptance_rate" in log_of(plane, first.id)

    again = {**args, "draft_model": "tiny_accelerated", "dataset": "PROMPT_COMPLETION", "epochs": 1}
    second = adaptive.jobs.run("specdec_alignment", 1, args={**again, "output_model_key": "tiny_faster"})
    job = ended(adaptive, second.id)
    assert job.status.value == "COMPLETED", (job.error, log_of(plane, second.id))
    assert adaptive.models.get("tiny_faster") is not None


def test_the_recipe_is_listed(plane: Plane, adaptive: Adaptive) -> None:
    make_project(plane, "lab")
    adaptive.set_default_project("lab")
    recipe = next(item for item in adaptive.recipes.list() if item.key == "specdec_alignment")
    assert recipe.builtin and recipe.name == "Model Acceleration (Speculative Decoding)"
    assert set(recipe.json_schema["required"]) == {"target_model", "draft_model", "dataset"}
