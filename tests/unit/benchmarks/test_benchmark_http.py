"""A server, its client, and the records of `http` and `idle`, with a stand-in that answers `x` to everything."""

import json
import os
import sys
from pathlib import Path

import pytest

from benchmarks import client, idle
from benchmarks.cli import parser
from benchmarks.engines import EngineSpec
from benchmarks.errors import BenchmarkError
from benchmarks.process import Loaded, Start
from benchmarks.report import emit
from benchmarks.server import role_of, serving
from benchmarks.streamed import streamed_record
from benchmarks.work import Draw, Shape, Timing

# Stands in for an interpreter: it is started with the arguments of `python -m harmonia.cli serve`.
STAND_IN = """#!{python}
import json, sys
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer

class Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    def do_GET(self):
        self.send_response(200 if self.path == "/health" else 404)
        self.send_header("content-length", "0")
        self.end_headers()
    def do_POST(self):
        body = json.loads(self.rfile.read(int(self.headers["content-length"])))
        self.send_response(200)
        self.send_header("transfer-encoding", "chunked")
        self.end_headers()
        for event in ["x"] * (body["max_tokens"] + {extra}) + {end}:
            self.chunk(f"data: {{event}}\\n\\n".encode())
        self.chunk(b"")
    def chunk(self, data):
        self.wfile.write(b"%x\\r\\n%s\\r\\n" % (len(data), data))

{before}
port = int(sys.argv[sys.argv.index("--port") + 1])
ThreadingHTTPServer(("127.0.0.1", port), Handler).serve_forever()
"""
DRAW = Draw(seed=0, vocab=200)
SHAPE = Shape(n=2, num_input=8, num_output=4)
MACHINE = {
    "cpu": "A processor", "cores": 2, "threads": 2, "load_1m": 0.1,
    "fp32_gflops": 200.0, "bf16_gflops": 40.0, "int8_gflops": 80.0, "read_gb_s": 18.0,
}  # fmt: skip


def stand_in(folder: Path, extra: int = 0, end: str = '["[DONE]"]', before: str = "") -> EngineSpec:
    script = folder / "python"
    script.write_text(STAND_IN.format(python=sys.executable, extra=extra, end=end, before=before), encoding="utf-8")
    script.chmod(0o755)
    return EngineSpec(name="harmonia", model=folder, precision="int8", threads=1, python=script)


def test_a_server_answers_in_events_and_is_gone_afterwards(tmp_path: Path) -> None:
    with serving(stand_in(tmp_path), (), DRAW, cold=False) as server:
        made = server.generate([[1], [2], [3]], 5)
        pids = list(server.tree)
        assert set(server.processes.values()) == {"server", "client"}
    assert len(made.ttft_s) == 3
    assert 0 < server.health_s <= server.ready_s
    for pid in pids:
        with pytest.raises(ProcessLookupError):
            os.kill(pid, 0)


def test_a_paused_server_answers_when_awake(tmp_path: Path) -> None:
    with serving(stand_in(tmp_path), (), DRAW, cold=False) as server:
        server.pause()
        with server.awake():
            assert server.generate([[1]], 2).wall_s > 0


@pytest.mark.parametrize(("extra", "end", "message"), [
    (1, '["[DONE]"]', "asked for 1 tokens in as many events, got"),
    (0, "[]", "broke an answer off"),
])  # fmt: skip
def test_an_answer_that_would_not_be_comparable_is_an_error(extra: int, end: str, message: str, tmp_path: Path) -> None:
    with pytest.raises(BenchmarkError, match=message), serving(stand_in(tmp_path, extra, end), (), DRAW, cold=False):
        pass


def test_a_server_that_ends_says_why(tmp_path: Path) -> None:
    spec = stand_in(tmp_path, before='sys.exit("no such model")')
    with pytest.raises(BenchmarkError, match="status 1:\nno such model"), serving(spec, (), DRAW, cold=False):
        pass


def test_a_request_is_one_greedy_stream() -> None:
    head, _, body = client.completion_request("m", [7, 8], 3).partition(b"\r\n\r\n")
    assert head.startswith(b"POST /v1/completions HTTP/1.1\r\n")
    assert f"Content-Length: {len(body)}".encode() in head
    assert json.loads(body) == {
        "model": "m", "prompt": [7, 8], "max_tokens": 3, "temperature": 0, "ignore_eos": True, "stream": True,
    }  # fmt: skip


@pytest.mark.parametrize(("command", "role"), [
    (["python", "-m", "harmonia.cli", "serve", "m"], "server"),
    (["python", "-m", "harmonia.worker", "--config-json", "{}"], "io"),
    (["python", "-m", "harmonia.worker.device", "7"], "device"),
    (["sh"], "other"),
])  # fmt: skip
def test_processes_are_called_by_their_module(command: list[str], role: str) -> None:
    assert role_of(command) == role


def pair(http_s: float, engine_s: float) -> tuple[Timing, Timing]:
    cpu = {"server": 8e-6, "io": 8e-6, "device": 8e-3, "client": 0.0}
    return (
        Timing(shape=SHAPE, wall_s=http_s, first_token_wall=0.5, tokens=[], ttft_s=(0.1, 0.3), cpu_s=cpu),
        Timing(shape=SHAPE, wall_s=engine_s, first_token_wall=0.4, tokens=[], cpu_s={"engine": 8e-3}),
    )


TOLD = (
    Loaded(engine="harmonia serve", engine_version="1", model="m", precision="int8", ready_s=2.0),
    Loaded(engine="harmonia", engine_version="1", model="m", precision="int8", ready_s=1.0),
)


def test_a_ratio_under_one_is_what_http_costs(capsys: pytest.CaptureFixture[str]) -> None:
    record = streamed_record(TOLD, [pair(2.0, 1.0), pair(1.0, 1.0), pair(4.0, 3.0)], MACHINE)
    assert (record["ratio_min"], record["ratio_median"], record["ratio_max"]) == (0.5, 0.75, 1.0)
    assert record["http"]["values"] == [4.0, 8.0, 2.0]
    assert (record["ttft_ms"], record["ttft_max_ms"]) == (200.0, 300.0)
    assert record["cpu_us"] == {"server": 1.0, "io": 1.0, "device": 1000.0, "client": 0.0, "engine": 1000.0}
    emit([record], as_table=True)
    out = capsys.readouterr().out
    assert all(text in out for text in ("HTTP = harmonia serve 1", "0.75", "A processor"))


def test_an_idle_server_is_watched(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(idle, "SETTLE_S", 0.0)
    start = Start(shapes=[SHAPE], draw=DRAW)
    (record,) = idle.idle(stand_in(tmp_path), start, 0.1, MACHINE)
    assert set(record["cores_of"]) == set(record["resident_mb"]) == {"server"}
    assert record["cores"] >= 0
    emit([record], as_table=True)
    assert "idle for 0.1 s" in capsys.readouterr().out


def test_defaults_are_those_of_the_goals() -> None:
    options = parser().parse_args(["http", "--model", "m"])
    assert (options.engine, options.n, options.input, options.output, options.pairs) == ("harmonia", [32], 128, 128, 3)
    assert parser().parse_args(["idle", "--model", "m"]).seconds == 20
