"""Figures of Harmonia alone, on a tiny model: agreement, interleaving, and the switch to a new version."""

import json
from pathlib import Path
from typing import Any

import pytest

from benchmarks import agreement, cli, divergence, interleave, switch
from benchmarks.cli import main
from benchmarks.report import emit
from benchmarks.tiny import write_tiny
from tests.integration.tiny_model import make_model

MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 1, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip
CASES = ["base", "adapter", "mixed adapters", "prefix hit", "chunked prefill", "decode batch"]


def fields(model: Path, **more: object) -> dict[str, Any]:
    common = {"model": str(model), "precision": "float32", "device": "cpu", "threads": 1, "rank": 4, "seed": 0}
    return {**common, "vocab": 200, **more}


def test_all_paths_agree_on_a_tiny_model(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: MACHINE)
    tiny = ["--tiny", "--rank", "4", "--threads", "1", "--input", "40", "--output", "4"]
    assert main(["agreement", *tiny, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["mode"], record["case"]) for record in records] == [
        (mode, case) for mode in ("plain", "invariant") for case in CASES
    ]
    assert all(record["ok"] and record["sampled_loss_max"] <= 1e-5 for record in records)
    assert all(record["sampled_loss_max"] == record["sampled_scored_max"] == 0 for record in records[len(CASES) :])


def test_a_difference_beyond_the_bound_is_told_and_ends_with_status_1(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    one = agreement.Told(model="base", prompt=[1], generated=[2], sampled=[-1.0], scored=[-1.0], trained=[-1.5])
    job = agreement.Job(**fields(Path("m"), num_input=1, num_output=1))
    record = agreement.agreement_record(job, agreement.CASES[0], [one])
    assert (record["sampled_scored_max"], record["sampled_loss_max"], record["ok"]) == (0.0, 0.5, False)
    monkeypatch.setattr(cli, "records", lambda options: iter([{**record, "kind": "agreement", "machine": MACHINE}]))
    assert main(["agreement", "--json"]) == 1
    assert '"ok": false' in capsys.readouterr().out


def test_on_a_gpu_no_bound_is_claimed() -> None:
    job = agreement.Job(**fields(Path("m"), num_input=1, num_output=1) | {"device": "cuda", "precision": "bfloat16"})
    one = agreement.Told(model="base", prompt=[1], generated=[2], sampled=[-1.0], scored=[-1.0], trained=[-1.1])
    assert agreement.agreement_record(job, agreement.CASES[0], [one])["ok"] is None


def test_in_invariant_mode_the_bound_is_nothing_on_every_device() -> None:
    job = agreement.Job(**fields(Path("m"), num_input=1, num_output=1) | {"device": "cuda", "precision": "bfloat16"})
    one = agreement.Told(model="base", prompt=[1], generated=[2], sampled=[-1.0], scored=[-1.0], trained=[-1.0 - 1e-7])
    assert agreement.agreement_record(job, agreement.CASES[0], [one], invariant=True)["ok"] is False


def test_answers_that_part_are_counted(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: MACHINE)
    tiny = ["--tiny", "--threads", "1", "--n", "1,2,5", "--prompts", "5", "--input", "20", "--output", "6"]
    assert main(["divergence", *tiny, "--json"]) == 0
    records = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [(record["mode"], record["sizes"]) for record in records] == [
        ("plain", "1 and 2"), ("plain", "1 and 5"), ("invariant", "1 and 2"), ("invariant", "1 and 5"),
    ]  # fmt: skip
    assert [record["ok"] for record in records] == [None, None, True, True]
    job = divergence.Job(**fields(Path("m"), num_prompts=2, num_input=1, num_output=3, sizes=[1, 2]))
    parted = divergence.divergence_record(job, 2, [[1, 2, 3], [4, 5, 6]], [[1, 2, 3], [4, 7, 6]], invariant=True)
    assert (parted["parted"], parted["parted_per_1000_tokens"], parted["shared_tokens"]) == (0.5, 200.0, 2.0)
    assert parted["ok"] is False
    assert main(["divergence", *tiny, "--n", "4"]) == 2
    assert "--n is 1; give a number of at least 2" in capsys.readouterr().err


def test_serving_and_training_are_measured_alone_and_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(interleave, "ARRIVAL_S", 0.05)
    work = {"n": 3, "num_input": 8, "num_output": 12, "max_batch_size": 64, "shortest": 4, "longest": 32}
    serving, training, both = interleave.run(**fields(write_tiny(tmp_path), seconds=0.3, pairs=2, **work))
    assert (serving["phase"], training["phase"], both["phase"]) == ("serving", "training", "both")
    assert 0 < serving["itl_ms"] <= serving["itl_p95_ms"] <= serving["itl_max_ms"]
    assert (training["itl_ms"], serving["train_tok_s"]) == (None, None)
    assert min(training["train_tok_s"], both["train_tok_s"], both["ttft_ms"]) > 0
    assert both["ok"] is (both["ratio_median"] <= 1.2)
    told = {"kind": "interleave", "model": "m", "other_cores": 0.0, "machine": MACHINE}
    emit([told | record for record in (serving, training, both)], as_table=True)
    assert "A processor" in capsys.readouterr().out


def test_a_new_version_answers_through_the_runtime_and_through_the_wire(tmp_path: Path) -> None:
    work = {"repeat": 2, "ways": ["runtime", "wire"]}
    direct, wire = switch.run(**fields(make_model(tmp_path), **work))
    assert (direct["way"], wire["way"]) == ("runtime", "wire")
    for record in (direct, wire):
        assert 0 < record["first_token_ms"] <= record["first_token_max_ms"]
        assert record["ok"] is (record["first_token_max_ms"] < 50)


def test_defaults_are_those_of_the_goals() -> None:
    options = cli.parser().parse_args(["train"])
    assert (options.rank, options.shortest, options.longest, options.peer_batch) == (16, 32, 512, [8])
    assert cli.parser().parse_args(["memory"]).case == []


@pytest.mark.parametrize("command", ["interleave", "agreement", "divergence", "switch", "memory"])
def test_a_model_that_is_not_there_is_named(
    command: str, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(cli, "describe", lambda threads, device: pytest.fail("measured before checking"))
    assert main([command, "--model", "no/such/model"]) == 2
    assert "no/such/model" in capsys.readouterr().err
