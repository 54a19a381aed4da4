"""Arguments: what they become, and what is said about those that cannot be used."""

import sys
from pathlib import Path

import pytest

from benchmarks import cli, machine
from benchmarks.cli import main, parser
from benchmarks.engines import KINDS, engine_spec
from benchmarks.errors import BenchmarkError


def test_counts_are_a_list() -> None:
    options = parser().parse_args(["serve", "--engine", "vllm", "--model", "m", "--n", "1,8,32"])
    assert (options.n, options.input, options.output) == ([1, 8, 32], 128, 128)


def test_counts_default_to_those_of_the_tables() -> None:
    assert parser().parse_args(["serve", "--engine", "vllm", "--model", "m"]).n == [1, 8, 32]


def test_table_follows_the_terminal_unless_chosen() -> None:
    assert parser().parse_args(["machine"]).table is None
    assert parser().parse_args(["machine", "--table"]).table is True
    assert parser().parse_args(["machine", "--json"]).table is False


@pytest.mark.parametrize("name", ["harmonia", "transformers", "vllm"])
def test_precision_defaults_to_full(name: str, tmp_path: Path) -> None:
    spec = engine_spec(name, str(tmp_path), None, None, 2)
    assert (spec.precision, spec.python) == ("float32", Path(sys.executable))


def test_every_engine_has_a_module() -> None:
    root = Path(cli.__file__).parents[1]
    assert all((root / (kind.module.replace(".", "/") + ".py")).exists() for kind in KINDS.values())


@pytest.mark.parametrize(("name", "precision", "python", "message"), [
    ("sglang", None, None, "engine 'sglang' is unknown; choose one of"),
    ("llamacpp", "int8", None, "precision 'int8' is not one of llamacpp's; choose one of stored"),
    ("llamacpp", None, None, "is not a GGUF file"),
    ("vllm", None, "no/such/python", "interpreter 'no/such/python' cannot be run"),
])  # fmt: skip
def test_what_cannot_be_used_is_named(
    name: str, precision: str | None, python: str | None, message: str, tmp_path: Path
) -> None:
    with pytest.raises(BenchmarkError, match=message):
        engine_spec(name, str(tmp_path), precision, python, 2)


@pytest.mark.parametrize("arguments", [
    ["--model", "no/such/model"],
    ["--model", ".", "--n", "0"],
    ["--model", ".", "--vocab", "7"],
    ["--model", ".", "--repeat", "0"],
    ["--model", ".", "--threads", "0"],
])  # fmt: skip
def test_an_unusable_argument_ends_with_its_value(
    arguments: list[str], capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: pytest.fail("measured before checking"))
    assert main(["serve", "--engine", "vllm", *arguments]) == 2
    assert arguments[-1] in capsys.readouterr().err


def test_a_machine_without_torch_is_an_error_with_a_reason(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "executable", "/bin/false")
    with pytest.raises(BenchmarkError, match="ceilings of device 'cpu'"):
        machine.describe(1, "cpu")
