"""Whole decoders over packed sequences: the outputs of serving, and the gradients of transformers."""

import random

import pytest
import torch

from harmonia.layers.forward import Forward, PackedAttention
from harmonia.layers.linear import WeightFormat
from harmonia.models.families import build_decoder
from tests.unit.kernels.gradients import assert_close, kept
from tests.unit.models.paged import PagedRunner
from tests.unit.models.tiny import CONFIGS, VOCAB, load, reference_model

LENGTHS = (33, 1, 12, 70)


@pytest.fixture(scope="module", params=CONFIGS)
def pair(request, tmp_path_factory):
    model = reference_model(request.param)
    folder = tmp_path_factory.mktemp(request.param)
    model.save_pretrained(folder)
    return model, load(folder)


def packed(device: torch.device | None = None) -> Forward:
    positions_T = torch.cat([torch.arange(length, device=device) for length in LENGTHS])
    return Forward(positions_T, PackedAttention(LENGTHS))


def hidden(decoder, x_TE: torch.Tensor, forward: Forward) -> torch.Tensor:
    residual_TE = None
    for layer in decoder.layers:
        x_TE, residual_TE = layer(x_TE, residual_TE, forward)
    return decoder.finish(x_TE, residual_TE)


def test_packed_sequences_get_the_outputs_of_serving(pair):
    _, decoder = pair
    rng = random.Random(0)
    chunks = {sequence: rng.choices(range(VOCAB), k=length) for sequence, length in enumerate(LENGTHS)}
    token_ids_T = torch.tensor([token for chunk in chunks.values() for token in chunk])
    pieces = hidden(decoder, decoder.embed(token_ids_T), packed()).split(LENGTHS)
    for sequence, token_ids in chunks.items():
        served_TE = PagedRunner(decoder, 1, 80).hidden({0: token_ids})
        assert_close(pieces[sequence].detach(), served_TE)


def test_gradients_of_inputs_are_those_of_transformers(pair):
    model, decoder = pair
    torch.manual_seed(0)
    x_TE, d_hidden_TE = torch.randn(2, sum(LENGTHS), 64)
    x_TE.requires_grad_()
    (ours_TE,) = torch.autograd.grad(hidden(decoder, x_TE, packed()), x_TE, d_hidden_TE)
    expected_TE = torch.cat([
        torch.autograd.grad(model.model(inputs_embeds=piece_TE[None]).last_hidden_state[0], x_TE, given_TE)[0][rows]
        for piece_TE, given_TE, rows in zip(x_TE.split(LENGTHS), d_hidden_TE.split(LENGTHS), slices(), strict=True)
    ])  # fmt: skip
    assert_close(ours_TE, expected_TE, tolerance=1e-4)


def slices() -> list[slice]:
    stops = torch.tensor(LENGTHS).cumsum(0).tolist()
    return [slice(stop - length, stop) for stop, length in zip(stops, LENGTHS, strict=True)]


def test_layers_keep_as_much_without_data(pair):
    """The memory plan runs a layer on the meta device and counts what it keeps."""
    _, decoder = pair
    empty = build_decoder(decoder.config, WeightFormat(torch.float32, torch.device("meta")))
    for layer in range(decoder.config.num_layers):
        assert kept_bytes(empty, layer, torch.device("meta")) == kept_bytes(decoder, layer, torch.device("cpu"))


def kept_bytes(decoder, layer: int, device: torch.device) -> int:
    inputs = torch.zeros(2, sum(LENGTHS), 64, device=device).requires_grad_().unbind()
    found = kept(lambda: decoder.layers[layer](*inputs, packed(device)))
    return sum(shape.numel() * dtype.itemsize for shape, dtype in found)
