"""Training beside a peer: the samples, the checks, the ratios, and one real run of both on a tiny model."""

import json
import sys
from pathlib import Path

import pytest

from benchmarks import cli
from benchmarks.cli import main
from benchmarks.conversation import conversing
from benchmarks.errors import BenchmarkError
from benchmarks.peers.training import TrainingJob
from benchmarks.process import environment_of
from benchmarks.report import emit
from benchmarks.tiny import write_tiny
from benchmarks.train import Peer, Samples, Told, Turn, _arrangements, _check_losses, train_records

MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 2, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip
SAMPLES = Samples(num_samples=40, shortest=3, longest=9, seed=0, vocab=200)
JOB = TrainingJob(
    model="m", adapter="", rank=4, precision="float32", device="cpu", threads=1, lr=1e-3, max_grad_norm=1.0,
    batch_size=4, is_sorted=False, max_tokens=64, longest=9,
)  # fmt: skip


def told(engine: str, peak_mb: float = 100.0, loss: float = 5.0) -> Told:
    return Told(engine=engine, version="1", arrangement=engine, ready_s=1.0, losses=[loss, 4.0], peak_mb=peak_mb)


def turn(wall_s: float) -> Turn:
    return Turn(num_tokens=1000, num_computed=1250, wall_s=wall_s, other_cores=0.1)


def test_samples_are_ragged_and_repeat_with_their_salt() -> None:
    step = SAMPLES.step("x")
    assert {len(sample) for sample in step} == set(range(3, 10))
    assert all(100 <= token < 200 for sample in step for token in sample)
    assert step == SAMPLES.step("x") != SAMPLES.step("y")


def test_the_faster_arrangement_of_the_peer_is_quoted() -> None:
    turns = [[turn(1.0), turn(3.0), turn(2.0)], [turn(1.0), turn(4.0), turn(1.5)]]
    given, ordered = train_records(JOB, SAMPLES, [told("harmonia"), told("given"), told("sorted")], turns)
    assert (given["is_quoted"], ordered["is_quoted"]) == (False, True)
    assert (ordered["ratio_min"], ordered["ratio_median"], ordered["ratio_max"]) == (1.5, 1.75, 2.0)
    assert (given["ok"], ordered["ok"]) == (None, True)
    assert ordered["b"]["real_share"] == 0.8


@pytest.mark.parametrize(("wall_s", "peak_mb"), [(1.2, 100.0), (2.0, 90.0)])
def test_a_goal_needs_speed_and_memory(wall_s: float, peak_mb: float) -> None:
    sides = [told("harmonia", 100.0), told("transformers", peak_mb)]
    (record,) = train_records(JOB, SAMPLES, sides, [[turn(1.0), turn(wall_s)]])
    assert record["ok"] is False


def test_other_work_is_an_error() -> None:
    with pytest.raises(BenchmarkError, match=r"5\.000000 per token in harmonia and 5\.002000 in peer"):
        _check_losses(told("harmonia"), told("peer", loss=5.002), "float32")


def test_a_table_has_both_sides(capsys: pytest.CaptureFixture[str]) -> None:
    made = train_records(JOB, SAMPLES, [told("harmonia"), told("transformers")], [[turn(1.0), turn(2.0)]])
    emit((record | {"machine": MACHINE} for record in made), as_table=True)
    out = capsys.readouterr().out
    assert all(text in out for text in ("A = harmonia 1", "B = transformers 1", "yes", "A processor"))


def test_both_sides_train_the_same(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: MACHINE)
    arguments = ["--model", str(write_tiny(tmp_path)), "--vocab", "200", "--rank", "4", "--threads", "1", "--json"]
    work = ["--samples", "5", "--shortest", "4", "--longest", "24", "--max-batch-size", "64", "--pairs", "1"]
    assert main(["train", *arguments, *work, "--peer-batch", "3", "--peer-order", "sorted"]) in (0, 1)
    record = json.loads(capsys.readouterr().out)
    assert record["loss_difference"] < 1e-4
    assert record["b"]["real_share"] < 1 < record["a"]["real_share"]
    assert record["b"]["arrangement"] == "batches of 3, sorted by length"
    assert min(record["peak_mb"].values()) > 0


@pytest.mark.parametrize(("arguments", "named"), [
    (["--longest", "16"], "--longest is 16"),
    (["--max-batch-size", "64"], "--max-batch-size is 64"),
    (["--peer-batch", "4,0"], "--peer-batch is 0"),
    (["--peer-python", "no/such/python"], "no/such/python"),
    (["--vocab", "7"], "--vocab is 7"),
])  # fmt: skip
def test_what_cannot_be_used_is_named(
    arguments: list[str], named: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: pytest.fail("measured before checking"))
    assert main(["train", "--model", ".", *arguments]) == 2
    assert named in capsys.readouterr().err


def test_a_peer_that_is_missing_says_how_to_get_it() -> None:
    bare = [sys.executable, "-S", "-m", "benchmarks.peers.peft"]
    with (
        conversing("transformers", bare, environment_of("transformers", 1)) as peer,
        pytest.raises(BenchmarkError, match="pip install torch transformers peft"),
    ):
        peer.ask(vars(JOB))


def test_each_arrangement_of_the_peer_takes_part_once() -> None:
    peer = Peer(python=Path("p"), batch_sizes=[1, 8], orders=(False, True))
    jobs = [job for name, _, _, job in _arrangements(JOB, peer) if name == "transformers"]
    assert [(job.batch_size, job.is_sorted) for job in jobs] == [(1, False), (8, False), (8, True)]
