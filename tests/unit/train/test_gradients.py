"""Gradients of whole models against transformers + PEFT, for every family and loss, whatever the packing."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest
import torch
from peft import LoraConfig, get_peft_model
from torch import Tensor
from torch.nn import functional as F
from transformers import PreTrainedModel

from harmonia.layers.adapters import AdapterBank, BankTarget, LoraMatrices
from harmonia.models.decoder import Decoder
from harmonia.models.export import read_parameter
from harmonia.protocol.losses import (
    Dpo,
    Grpo,
    Gspo,
    LanguageModelling,
    Loss,
    Mse,
    MsePerToken,
    Ppo,
    Ranking,
    Tangents,
    TrustRegionMse,
)
from harmonia.train.microbatch import Item, MicroBatch
from harmonia.train.samples import Sample
from harmonia.train.scalar_head import ScalarHead
from harmonia.train.weights import TrainedAdapter, TrainedBackbone
from tests.unit.models.tiny import CONFIGS, VOCAB, load, reference_model

RANK, ALPHA = 4, 12.0
LENGTHS = (9, 17, 5, 12)


@dataclass(frozen=True)
class Text:
    """A sample as a user has it."""

    token_ids: list[int]
    weights: list[float]

    def sample(self, loss: Loss) -> Sample:
        if isinstance(loss, Ranking | Mse):
            return Sample.last_token(self.token_ids)
        if isinstance(loss, Tangents):
            tangents = np.zeros(len(self.token_ids) - 1)
            tangents[np.flatnonzero(self.weights[1:])] = loss.tangents
            return Sample.from_tangents(self.token_ids[:-1], self.token_ids[1:], tangents)
        return Sample.from_weighted(self.token_ids, self.weights)


def texts() -> list[Text]:
    generator = np.random.default_rng(5)
    made = []
    for length in LENGTHS:
        weights = (generator.random(length) < 0.6).astype(float)
        weights[0], weights[-1] = 0.0, 1.0
        made.append(Text(generator.integers(1, VOCAB, length).tolist(), weights.tolist()))  # 0 pads in transformers
    return made


@dataclass(frozen=True)
class Adapter:
    """One adapter, in PEFT's model and in our bank."""

    model: torch.nn.Module
    trained: TrainedAdapter


def peft_adapter(model: PreTrainedModel, decoder: Decoder, head: ScalarHead | None = None, seed: int = 0) -> Adapter:
    """PEFT's LoRA on all linear layers with random A and B, and the same in a bank of ours."""
    # PEFT has its own way with experts, and takes a plain layer between them for one
    targets = [t for t in decoder.linears() if decoder.config.moe is None or "self_attn" in t.path]
    names = [f"model.layers.{target.layer}.{target.path}" for target in targets]
    tuned = get_peft_model(model, LoraConfig(r=RANK, lora_alpha=ALPHA, target_modules=names))
    torch.manual_seed(seed)
    matrices: dict[str, dict[str, Tensor]] = {}
    for name, parameter in tuned.named_parameters():
        if "lora_" not in name:
            continue
        with torch.no_grad():
            parameter.normal_(std=0.1)
        path, side = name.removeprefix("base_model.model.").split(".lora_")
        matrices.setdefault(path, {})[side[0]] = parameter.detach()
    bank = AdapterBank(
        (BankTarget(f"model.layers.{t.layer}.{t.path}", t.linear, t.part) for t in decoder.linears()),
        max_adapters=2,
        num_rows=2 * RANK,
        fmt=decoder.fmt,
    )
    slot = bank.load("own", {path: LoraMatrices(m["A"], m["B"], ALPHA / RANK) for path, m in matrices.items()})
    return Adapter(tuned, TrainedAdapter(bank, (slot, bank.copy_slot(slot, "other")), head))


def run(decoder: Decoder, items: list[Item], num_kept: int = 99, num_whole: int | None = None) -> None:
    for _ in MicroBatch(decoder, items, num_kept=min(num_kept, len(decoder.layers)), num_whole=num_whole).run():
        pass


def logprobs(model: torch.nn.Module, text: Text) -> Tensor:
    """Log-probabilities of the weighted tokens, as a user of transformers computes them."""
    ids = torch.tensor([text.token_ids])
    scores = F.log_softmax(model(input_ids=ids).logits[0, :-1].float(), dim=-1)
    chosen = scores.gather(1, ids[0, 1:, None])[:, 0]
    return chosen[torch.tensor(text.weights[1:]) != 0]


def hidden(model: torch.nn.Module, text: Text) -> Tensor:
    states = model(input_ids=torch.tensor([text.token_ids]), output_hidden_states=True).hidden_states
    return states[-1][0]


def their_gradients(adapter: Adapter) -> dict[str, Tensor]:
    named = {}
    for name, parameter in adapter.model.named_parameters():
        if "lora_" in name and parameter.grad is not None:
            path, side = name.removeprefix("base_model.model.").split(".lora_")
            named[f"{path}.lora_{side[0]}"] = parameter.grad if side[0] == "A" else parameter.grad.T
    return named


def assert_same(ours: dict[str, Tensor], theirs: dict[str, Tensor], tolerance: float = 1e-4) -> None:
    assert theirs.keys() <= ours.keys()
    assert all(ours[name].abs().max() == 0 for name in ours.keys() - theirs.keys())
    largest = max(float(value.abs().max()) for value in theirs.values())
    assert largest > 0
    for name, expected in theirs.items():
        error = float((ours[name] - expected).norm() / (expected.norm() + 1e-6 * largest))
        assert error < tolerance, (name, error)


def our_gradients(adapter: Adapter) -> dict[str, Tensor]:
    return {name: leaf.grad for name, leaf in adapter.trained.leaves().items() if leaf.grad is not None}


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], tuple[PreTrainedModel, Path]]:
    folders: dict[str, Path] = {}

    def make(name: str) -> tuple[PreTrainedModel, Path]:
        model = reference_model(name)
        if name not in folders:
            folders[name] = tmp_path_factory.mktemp(name)
            model.save_pretrained(folders[name])
        return model, folders[name]

    return make


@pytest.mark.parametrize("family", CONFIGS)
@pytest.mark.parametrize(("num_kept", "num_whole"), [(3, 3), (2, 1), (1, 0)])
def test_adapter_gradients_of_every_family(saved, family: str, num_kept: int, num_whole: int) -> None:
    model, folder = saved(family)
    decoder = load(folder)
    adapter = peft_adapter(model, decoder)
    for text in texts():
        weights = torch.tensor(text.weights)
        (-(logprobs(adapter.model, text) * weights[weights != 0]).sum()).backward()

    losses: list[Tensor] = []
    loss = LanguageModelling()
    items = [
        Item((text.sample(loss),), loss, adapter.trained.slot, None, lambda total, _: losses.append(total))
        for text in texts()
    ]
    run(decoder, items, num_kept, num_whole)

    assert_same(our_gradients(adapter), their_gradients(adapter))
    expected = torch.stack([-logprobs(adapter.model, text).sum() for text in texts()]).sum()
    assert float(sum(losses)) == pytest.approx(float(expected.detach()), rel=1e-5)


@pytest.mark.parametrize("family", CONFIGS)
def test_full_weight_gradients_of_every_family(saved, family: str) -> None:
    model, folder = saved(family)
    decoder = load(folder)
    for text in texts():
        (-logprobs(model, text).sum()).backward()

    trained = TrainedBackbone(decoder, None)
    loss = LanguageModelling()
    run(decoder, [Item((text.sample(loss),), loss, None, None, lambda *_: None) for text in texts()], 2)

    assert_same(checkpoint_gradients(decoder, trained), checkpoint_names(model))


def checkpoint_names(model: PreTrainedModel) -> dict[str, Tensor]:
    """Their gradients by the names of checkpoints, where each expert stands alone."""
    gradients = {}
    for name, parameter in model.named_parameters():
        if not name.endswith(("experts.gate_up_proj", "experts.down_proj")):
            gradients[name] = parameter.grad
            continue
        path, _, fused = name.rpartition(".")
        parts = ["gate_proj", "up_proj"] if fused == "gate_up_proj" else ["down_proj"]
        for expert, gradient in enumerate(parameter.grad):
            for part, rows in zip(parts, gradient.chunk(len(parts)), strict=True):
                gradients[f"{path}.{expert}.{part}.weight"] = rows
    return gradients


def checkpoint_gradients(decoder: Decoder, trained: TrainedBackbone) -> dict[str, Tensor]:
    """Gradients by checkpoint name: each leaf's gradient takes the place of its values and is read as they are."""
    with torch.no_grad():
        for leaf in trained.leaves().values():
            leaf.copy_(leaf.grad)
    offset = 1.0 if decoder.config.family == "gemma3" else 0.0
    return {
        parameter.name: read_parameter(decoder, parameter.name)
        + (offset if parameter.name.endswith("norm.weight") else 0)
        for parameter in decoder.parameters()
    }


def language_losses(text: Text, generator: np.random.Generator) -> dict[str, Loss]:
    count = int(np.count_nonzero(text.weights))

    def numbers(scale: float = 1.0, mean: float = 0.0) -> tuple[float, ...]:
        return tuple((generator.standard_normal(count) * scale + mean).tolist())

    near = numbers(2.0, -4.5)
    return {
        "ppo": Ppo(trajectory_logprobs=near, advantages=numbers(), clip_range=0.2),
        "grpo": Grpo(
            trajectory_logprobs=near,
            reference_logprobs=numbers(1.0, -4.5),
            advantages=numbers(),
            clip_range=0.2,
            kl_beta=0.1,
        ),
        "gspo": Gspo(
            trajectory_logprobs=near,
            reference_logprobs=numbers(1.0, -4.5),
            advantage=0.7,
            left_clip=3.0,
            right_clip=4.0,
            kl_beta=0.1,
        ),
        "tangents": Tangents(tangents=numbers()),
    }


def expected_loss(loss: Loss, lp: Tensor) -> Tensor:
    """The contract's formulas, written the plain way."""
    if isinstance(loss, Tangents):
        return -(torch.tensor(loss.tangents) * lp).sum()
    trajectory = torch.tensor(loss.trajectory_logprobs)
    if isinstance(loss, Gspo):
        ratio = (lp - trajectory).mean().exp()
        clipped = ratio.clamp(1 - loss.left_clip, 1 + loss.right_clip)
        surrogate = -torch.minimum(ratio * loss.advantage, clipped * loss.advantage) * len(lp)
    else:
        ratio, advantages = (lp - trajectory).exp(), torch.tensor(loss.advantages)
        clipped = ratio.clamp(1 - loss.clip_range, 1 + loss.clip_range)
        surrogate = -torch.minimum(ratio * advantages, clipped * advantages).sum()
    if isinstance(loss, Ppo):
        return surrogate
    drift = torch.tensor(loss.reference_logprobs) - lp
    return surrogate + loss.kl_beta * (drift.exp() - drift - 1).sum()


@pytest.mark.parametrize("name", ["ppo", "grpo", "gspo", "tangents"])
def test_gradients_of_policy_losses(saved, name: str) -> None:
    model, folder = saved("llama")
    decoder = load(folder)
    adapter = peft_adapter(model, decoder)
    losses = [language_losses(text, np.random.default_rng(7))[name] for text in texts()]
    for text, loss in zip(texts(), losses, strict=True):
        expected_loss(loss, logprobs(adapter.model, text)).backward()

    items = [
        Item((text.sample(loss),), loss, adapter.trained.slot, None, lambda *_: None)
        for text, loss in zip(texts(), losses, strict=True)
    ]
    run(decoder, items)

    assert_same(our_gradients(adapter), their_gradients(adapter))


def test_gradient_of_dpo(saved) -> None:
    model, folder = saved("qwen3")
    decoder = load(folder)
    adapter = peft_adapter(model, decoder)
    good, bad, *_ = texts()
    loss = Dpo(reference_positive=-30.0, reference_negative=-61.0, beta=0.1)
    margin = logprobs(adapter.model, good).sum() - logprobs(adapter.model, bad).sum() - (-30.0 + 61.0)
    (-F.logsigmoid(0.1 * margin)).backward()

    run(decoder, [Item((good.sample(loss), bad.sample(loss)), loss, adapter.trained.slot, None, lambda *_: None)])

    assert_same(our_gradients(adapter), their_gradients(adapter))


@pytest.mark.parametrize("name", ["ranking", "mse", "mse_per_token", "trust_region"])
def test_gradients_of_scalar_losses(saved, name: str) -> None:
    model, folder = saved("llama")
    decoder = load(folder)
    first, second, *_ = texts()
    count = int(np.count_nonzero(first.weights))
    targets = tuple(np.linspace(-1, 1, count).tolist())
    loss: Loss = {
        "ranking": Ranking(),
        "mse": Mse(target=0.3),
        "mse_per_token": MsePerToken(targets=targets),
        "trust_region": TrustRegionMse(targets=targets, clip_centers=targets[::-1], clip_range=0.2),
    }[name]
    torch.manual_seed(2)
    row = (torch.randn(decoder.config.hidden_size) * 0.1).requires_grad_()
    adapter = peft_adapter(model, decoder, ScalarHead(row.detach().clone()))

    def last(text: Text) -> Tensor:
        return hidden(adapter.model, text)[-1] @ row

    def each(text: Text) -> Tensor:
        return (hidden(adapter.model, text) @ row)[:-1][torch.tensor(text.weights[1:]) != 0]

    if name == "ranking":
        expected = -F.logsigmoid(last(first) - last(second))
    elif name == "mse":
        expected = (last(first) - 0.3) ** 2
    else:
        scores, wanted, centers = each(first), torch.tensor(targets), torch.tensor(targets[::-1])
        squares = (scores - wanted) ** 2
        if name == "trust_region":
            squares = torch.maximum(squares, (centers + (scores - centers).clamp(-0.2, 0.2) - wanted) ** 2)
        expected = squares.sum()
    expected.backward()

    sides = (first.sample(loss), second.sample(loss)) if name == "ranking" else (first.sample(loss),)
    trained = adapter.trained
    losses: list[Tensor] = []
    run(decoder, [Item(sides, loss, trained.slot, trained.head, lambda total, _: losses.append(total))])

    assert float(losses[0]) == pytest.approx(float(expected.detach()), rel=1e-5)
    assert_same(our_gradients(adapter), {**their_gradients(adapter), "score.weight": row.grad})
