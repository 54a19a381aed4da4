"""An engine in a process of its own: answers, errors, and an end without leftovers."""

import os
import sys
from pathlib import Path

import pytest

from benchmarks import engines, machine
from benchmarks.engines import EngineKind, EngineSpec
from benchmarks.errors import BenchmarkError
from benchmarks.process import Start, running
from benchmarks.work import Draw, Shape

RUNNER = """
import os, sys
from benchmarks.peers.channel import EngineError, require, serve

class Engine:
    version, precision = "1.2", "float32"
    def generate(self, prompts, num_output_tokens):
        print("noise on standard output")
        return [[os.getpid()] * (num_output_tokens + {extra}) for _ in prompts]

def load(job):
    {load}
    return Engine()

serve(load)
"""
START = Start(shapes=[Shape(n=1, num_input=8, num_output=4)], draw=Draw(seed=0, vocab=200))


def runner(folder: Path, monkeypatch: pytest.MonkeyPatch, load: str = "pass", extra: int = 0) -> EngineSpec:
    (folder / "stand_in_runner.py").write_text(RUNNER.format(load=load, extra=extra), encoding="utf-8")
    monkeypatch.setenv("PYTHONPATH", str(folder))
    monkeypatch.setitem(engines.KINDS, "stand-in", EngineKind(module="stand_in_runner", precisions=("float32",)))
    return EngineSpec(name="stand-in", model=folder, precision="float32", threads=1, python=Path(sys.executable))


def test_a_running_engine_answers_and_is_gone_afterwards(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(runner(tmp_path, monkeypatch), START) as (engine, loaded):
        tokens = engine.generate([[1], [2]], 3).tokens
    assert (loaded.engine_version, loaded.precision, loaded.model) == ("1.2", "float32", tmp_path.name)
    assert [len(sequence) for sequence in tokens] == [3, 3]
    with pytest.raises(ProcessLookupError):
        os.kill(tokens[0][0], 0)


def test_a_paused_engine_answers_when_awake(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with running(runner(tmp_path, monkeypatch), START) as (engine, _):
        engine.pause()
        with engine.awake():
            assert len(engine.generate([[1]], 2).tokens) == 1


@pytest.mark.parametrize(
    ("load", "extra", "message"),
    [
        (
            'require("no_such_peer", "pip install it")',
            0,
            r"'no_such_peer' is not installed in .*pip install it.*--python",
        ),
        ("1 / 0", 0, r"(?s)stand-in ended with status 1.*ZeroDivisionError"),
        ("pass", 1, "asked for 1 x 1 tokens, got 1 sequences of"),
    ],
    ids=["a missing peer and its remedy", "the last words of a crash", "a figure that would not be comparable"],
)
def test_an_engine_that_fails_says(
    load: str, extra: int, message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    spec = runner(tmp_path, monkeypatch, load=load, extra=extra)
    with pytest.raises(BenchmarkError, match=message), running(spec, START):
        pass


def test_cpuinfo_gives_the_first_processor() -> None:
    text = "model name : First\nflags : avx2 fma\n\nmodel name : Second\nflags : sse\n"
    assert machine.parse_cpuinfo(text) == ("First", {"avx2", "fma"})
    assert machine.parse_cpuinfo("") == ("", set())
