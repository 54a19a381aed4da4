"""How a checkpoint in fp8 scales its matrices, from its `quantization_config`. Imports no torch."""

from __future__ import annotations

from harmonia.errors import UnsupportedModelError
from harmonia.models.fields import Fields

SIDE = 128
_KEY = "quantization_config"
_SUPPORTED = (
    "weights in fp8 (e4m3) with a scale per output channel, per matrix or per 128 x 128 block, and activations that are"
    " quantised while running, as quant_method 'fp8' or 'compressed-tensors' says; convert others to bfloat16"
)


def fp8_side(fields: Fields) -> int | None:
    """Side of the squares that share a scale; 0: an output channel or a whole matrix has one; None: not quantised.

    Errors: UnsupportedModelError naming a method that is not read.
    """
    if not fields.has(_KEY):
        return None
    config = fields.section(_KEY)
    method = config.text("quant_method", "")
    match method:
        case "fp8":
            return _plain(config)
        case "compressed-tensors":
            return _compressed(config)
    raise _refused(config, "quant_method", method)


def _plain(config: Fields) -> int:
    """As transformers and vLLM write it."""
    if config.text("fmt", "e4m3") != "e4m3":
        raise _refused(config, "fmt", config.text("fmt"))
    if config.text("activation_scheme", "dynamic") != "dynamic":
        raise _refused(config, "activation_scheme", config.text("activation_scheme"))
    return _side(config, "weight_block_size")


def _compressed(config: Fields) -> int:
    """As llm-compressor writes it: one scheme for all matrices."""
    groups = config.section("config_groups")
    if len(groups.values) != 1:
        raise _refused(config, "config_groups", list(groups.values))
    group = groups.section(next(iter(groups.values)))
    weights, activations = group.section("weights"), group.section("input_activations")
    for part in (weights, activations):
        if part.text("type", "") != "float" or part.integer("num_bits", 16) != 8:
            raise _refused(part, "type", f"{part.text('type', 'none')}, {part.integer('num_bits', 16)} bits")
    if not activations.flag("dynamic", False):
        raise _refused(activations, "dynamic", False)
    strategy = weights.text("strategy", "")
    if strategy == "block":
        return _side(weights, "block_structure")
    if strategy not in ("channel", "tensor"):
        raise _refused(weights, "strategy", strategy)
    return 0


def _side(config: Fields, key: str) -> int:
    sizes = config.integers(key)
    if not sizes:
        return 0
    if sizes != (SIDE, SIDE):
        raise _refused(config, key, list(sizes))
    return SIDE


def _refused(fields: Fields, key: str, value: object) -> UnsupportedModelError:
    return fields.unsupported(key, value, _SUPPORTED)
