"""Distillation against transformers and torch's own gradients: every divergence, whatever is trained or packed."""

from __future__ import annotations

from collections.abc import Callable
from itertools import groupby
from pathlib import Path
from typing import get_args

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from harmonia.models.decoder import Decoder
from harmonia.protocol.losses import Distillation, Divergence, LanguageModelling
from harmonia.train import distillation
from harmonia.train.distillation import Teacher, chunk_rows
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.weights import TrainedBackbone
from tests.unit.models.tiny import load, reference_model
from tests.unit.train.test_gradients import (
    Text,
    assert_same,
    checkpoint_gradients,
    checkpoint_names,
    logprobs,
    our_gradients,
    peft_adapter,
    run,
    texts,
    their_gradients,
)

DIVERGENCES: tuple[Divergence, ...] = get_args(Divergence)
WEIGHT = 0.75

Worth = tuple[Tensor, Tensor, Tensor]
Models = Callable[..., tuple[PreTrainedModel, Decoder]]


@pytest.fixture
def made(tmp_path: Path) -> Models:
    """A model in transformers and in our runtime: `made("llama", seed=1, vocab_size=90)`."""

    def make(name: str, seed: int = 0, **settings: int) -> tuple[PreTrainedModel, Decoder]:
        model = reference_model(name, seed, **settings)
        folder = tmp_path / f"{name}{seed}"
        model.save_pretrained(folder)
        return model, load(folder)

    return make


def lesson(text: Text) -> Text:
    """The text with weights that are not all 0 or 1."""
    return Text(text.token_ids, [weight * WEIGHT for weight in text.weights])


def worth(student: torch.nn.Module, teacher: torch.nn.Module, text: Text, divergence: Divergence) -> Worth:
    """(loss, overlap, agreements) as somebody with transformers computes them, in fp64 from the logits on."""
    ids, weights = torch.tensor([text.token_ids]), torch.tensor(text.weights[1:]).double()
    logits = student(input_ids=ids).logits[0, :-1].double()
    with torch.no_grad():
        teacher_logits = teacher(input_ids=ids).logits[0, :-1].double()
    shared = min(logits.shape[1], teacher_logits.shape[1])
    log_q, log_p = F.log_softmax(logits[:, :shared], -1), F.log_softmax(teacher_logits[:, :shared], -1)
    p, q = log_p.exp(), log_q.exp()
    each = {
        "forward_kl": F.kl_div(log_q, log_p, reduction="none", log_target=True).sum(-1),
        "reverse_kl": F.kl_div(log_p, log_q, reduction="none", log_target=True).sum(-1),
        "total_variation": (p - q).abs().sum(-1) / 2,
    }[divergence]
    is_read = weights != 0
    overlap, agreement = torch.minimum(p, q).sum(-1), (p.argmax(-1) == q.argmax(-1)).double()
    return (each * weights).sum(), overlap[is_read].sum().detach(), agreement[is_read].sum()


def item(
    text: Text, teacher: Teacher, divergence: Divergence, slot: int | None = None, found: list[Worth] | None = None
) -> Item:
    def note(loss: Tensor, sums: tuple[Tensor, ...]) -> None:
        if found is not None:
            found.append((loss, *sums))  # type: ignore[arg-type]

    loss = Distillation(teacher="teacher", divergence=divergence)
    return Item((text.sample(loss),), loss, slot, None, note, teacher)


def assert_worth(found: list[Worth], expected: list[Worth]) -> None:
    assert len(found) == len(expected)
    for ours, theirs in zip(found, expected, strict=True):
        assert [float(x) for x in ours] == pytest.approx([float(x.detach()) for x in theirs], rel=1e-4)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("size", [2, 1000])
def test_an_adapter_learns_from_a_larger_model(
    made: Models, monkeypatch: pytest.MonkeyPatch, divergence: Divergence, size: int
) -> None:
    monkeypatch.setattr(distillation, "head_rows", lambda *_: size)
    model, decoder = made("llama")
    teacher_model, teacher = made("qwen3", seed=1, hidden_size=96, intermediate_size=160)
    adapter = peft_adapter(model, decoder)
    lessons = [lesson(text) for text in texts()]
    expected = [worth(adapter.model, teacher_model, text, divergence) for text in lessons]
    sum(loss for loss, *_ in expected).backward()

    found: list[Worth] = []
    run(decoder, [item(t, Teacher(teacher, None), divergence, adapter.trained.slot, found) for t in lessons], 2)

    assert_same(our_gradients(adapter), their_gradients(adapter))
    assert_worth(found, expected)


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("family", ["llama", "qwen2", "gemma3-linear-softcap"], ids=["separate", "tied", "softcap"])
def test_whole_weights_learn_with_any_head(made: Models, family: str, divergence: Divergence) -> None:
    model, decoder = made(family)
    teacher_model, teacher = made("gemma3-linear-softcap", seed=1)
    expected = [worth(model, teacher_model, lesson(text), divergence) for text in texts()]
    sum(loss for loss, *_ in expected).backward()

    trained, found = TrainedBackbone(decoder, None), list[Worth]()
    run(decoder, [item(lesson(t), Teacher(teacher, None), divergence, None, found) for t in texts()], 1)

    assert_worth(found, expected)
    assert_same(checkpoint_gradients(decoder, trained), checkpoint_names(model))


@pytest.mark.parametrize("divergence", DIVERGENCES)
@pytest.mark.parametrize("sizes", [(96, 101), (112, 96)], ids=["teacher-padded", "student-padded"])
def test_padding_of_a_vocabulary_is_no_token(made: Models, sizes: tuple[int, int], divergence: Divergence) -> None:
    model, decoder = made("llama", vocab_size=sizes[0])
    teacher_model, teacher = made("llama", seed=1, vocab_size=sizes[1])
    expected = [worth(model, teacher_model, text, divergence) for text in texts()]
    sum(loss for loss, *_ in expected).backward()

    trained, found = TrainedBackbone(decoder, None), list[Worth]()
    run(decoder, [item(t, Teacher(teacher, None), divergence, None, found) for t in texts()])

    assert_worth(found, expected)
    assert_same(checkpoint_gradients(decoder, trained), checkpoint_names(model))


def test_the_base_teaches_its_adapter_and_an_adapter_another(made: Models) -> None:
    model, decoder = made("llama")
    base, _ = made("llama")
    adapter = peft_adapter(model, decoder)
    first, second, *_ = texts()
    loss, *sums = worth(adapter.model, base, first, "forward_kl")
    loss.backward()

    found: list[Worth] = []
    slot = adapter.trained.slot
    itself = Teacher(decoder, adapter.trained.idle_slot)
    items = [item(first, Teacher(decoder, None), "forward_kl", slot, found), item(second, itself, "reverse_kl", slot)]
    run(decoder, items)

    assert_worth(found, [(loss, *sums)])
    assert_same(our_gradients(adapter), their_gradients(adapter))  # one's equal teaches nothing


def test_samples_of_all_kinds_share_a_micro_batch(made: Models) -> None:
    model, decoder = made("llama")
    teachers = [made("llama", seed=seed) for seed in (1, 2)]
    choices: list[Divergence] = ["forward_kl", "reverse_kl", "forward_kl", "total_variation"]
    plan = [(text, teachers[index % 2], choices[index]) for index, text in enumerate(texts())]
    adapter = peft_adapter(model, decoder)
    expected = [worth(adapter.model, teacher, text, divergence) for text, (teacher, _), divergence in plan]
    language = LanguageModelling()
    (sum(loss for loss, *_ in expected) - sum(logprobs(adapter.model, text).sum() for text in texts())).backward()

    slot = adapter.trained.slot
    found: list[list[Worth]] = [[] for _ in plan]
    items = [
        item(text, Teacher(teacher, None), divergence, slot, found[index])
        for index, (text, (_, teacher), divergence) in enumerate(plan)
    ]
    items += [Item((text.sample(language),), language, slot, None, lambda *_: None) for text in texts()]
    run(decoder, items[::2] + items[1::2], 1)

    for ours, theirs in zip(found, expected, strict=True):
        assert_worth(ours, [theirs])
    assert_same(our_gradients(adapter), their_gradients(adapter))


def test_a_lesson_stops_before_each_layer_and_each_chunk(made: Models, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(distillation, "head_rows", lambda *_: 16)
    _, student = made("llama")
    _, teacher = made("qwen3", seed=1)
    TrainedBackbone(student, None)
    items = [item(text, Teacher(teacher, None), "forward_kl") for text in texts()]
    slices = list(MicroBatch(student, items, num_kept=3).run())
    kinds = [kind for kind, _ in groupby(piece.kind for piece in slices)]
    assert kinds == ["teacher", "forward", "distillation", "backward"]
    num_rows = sum(len(entry.sides[0].rows_W) for entry in items)
    assert [sum(piece.kind == kind for piece in slices) for kind in kinds] == [3, 3, -(-num_rows // 8), 3]
    assert sum(piece.num_tokens for piece in slices if piece.kind == "distillation") == num_rows


def test_two_chunks_of_logits_take_no_more_than_one(made: Models) -> None:
    _, student = made("llama", vocab_size=96)
    _, teacher = made("llama", seed=1, vocab_size=128)
    assert chunk_rows(student, student, 1000) == 500
    assert chunk_rows(student, teacher, 1000) == 1000 * 96 // (96 + 128)
    assert chunk_rows(student, teacher, 1) == 1
