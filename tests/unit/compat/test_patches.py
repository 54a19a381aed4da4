"""Recipes and the packages above them replace methods on these classes: each replacement must be what callers reach."""

from typing import Any

import pytest
from harmony_client import InferenceModel, ModelBuilder, StringThread, TokenizedThread, TrainingModel

PATCHED = [
    (StringThread, "__repr__"),
    (StringThread, "_repr_html_"),
    (TokenizedThread, "__repr__"),
    *((InferenceModel, name) for name in ("generate", "generate_tokens", "generate_and_validate")),
    *((InferenceModel, name) for name in ("render_schema", "render_pydantic_model")),
    (TrainingModel, "save"),
    (ModelBuilder, "spawn_inference"),
    (ModelBuilder, "spawn_train"),
]


@pytest.mark.parametrize(("cls", "name"), PATCHED)
def test_methods_can_be_replaced(cls: Any, name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    def replacement(self: object) -> str:
        return "replaced"

    monkeypatch.setattr(cls, name, replacement, raising=False)
    assert getattr(cls, name) is replacement


def test_a_training_model_generates_as_the_inference_model_does(monkeypatch: pytest.MonkeyPatch) -> None:
    own = vars(TrainingModel)
    inherited = {"generate", "generate_tokens", "generate_and_validate", "render_schema", "render_pydantic_model"}
    assert issubclass(TrainingModel, InferenceModel) and not inherited & set(own)
    monkeypatch.setattr(InferenceModel, "generate", "replaced")
    assert TrainingModel.generate == "replaced"  # type: ignore[comparison-overlap]


def test_a_replaced_repr_is_what_str_gives(monkeypatch: pytest.MonkeyPatch) -> None:
    thread = StringThread([("user", "hello")])
    assert str(thread) == repr(thread)
    monkeypatch.setattr(StringThread, "__repr__", lambda self: "a conversation")
    assert str(thread) == repr(thread) == f"{thread}" == "a conversation"
