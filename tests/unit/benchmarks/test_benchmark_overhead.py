"""What records say of the control plane's part in an answer."""

import pytest

from benchmarks.errors import BenchmarkError
from benchmarks.overhead import CONTROL, SERVE, Block, ChatAnswer, Front, Turn, overhead_record
from benchmarks.work import Shape

MANY = Shape(n=32, num_input=8, num_output=10)


def turn(wall_s: float, latency_s: float, first_s: float | None = None) -> Turn:
    firsts = () if first_s is None else (first_s, first_s)
    cpu = {"server": 0.004 * wall_s, "io": 0.1, "device": 0.3, "client": 1.0}
    return Turn(wall_s=wall_s, latencies_s=(latency_s, latency_s), first_s=firsts, cpu_s=cpu, other_cores=0.2)


def block(control_s: float, serve_s: float) -> Block:
    return {CONTROL: [turn(control_s, 0.5)] * 2, SERVE: [turn(serve_s, 0.4)] * 2}


def test_a_ratio_under_one_is_what_the_control_plane_costs() -> None:
    record = overhead_record(MANY, [block(2.0, 1.0), block(1.0, 1.0), block(1.01, 1.0)], is_tiny=False)
    assert (record["ratio_min"], record["ratio_median"], record["ratio_max"]) == (0.5, 0.99, 1.0)
    assert (record["added_ms"], record["added_first_ms"], record["requests"]) == (100.0, None, 12)
    assert record["requests_s"] == {CONTROL: 1.5, SERVE: 2.0}
    assert record["cpu_ms"] == {CONTROL: 2.02, SERVE: 2.0, "engine": 200.0}
    assert record["cpu_share"] == 0.0001
    assert record["other_cores"] == 0.2


@pytest.mark.parametrize(("n", "is_tiny", "wall_s", "ok"), [
    (32, False, 1.019, True), (32, False, 1.03, False), (8, False, 9.0, None),
    (1, True, 9.0, False), (32, True, 9.0, None), (1, False, 9.0, None),
])  # fmt: skip
def test_each_goal_is_judged_where_it_can_be_seen(n: int, is_tiny: bool, wall_s: float, ok: bool | None) -> None:
    shape = Shape(n=n, num_input=8, num_output=10)
    assert overhead_record(shape, [block(wall_s, 1.0)], is_tiny=is_tiny)["ok"] is ok


def test_streams_tell_their_first_token() -> None:
    streams = {CONTROL: [turn(1.0, 0.5, 0.103)], SERVE: [turn(1.0, 0.499, 0.1)]}
    record = overhead_record(Shape(n=1, num_input=8, num_output=10), [streams], is_tiny=True)
    assert (record["added_ms"], record["added_first_ms"], record["ok"]) == (1.0, 3.0, True)


def test_a_stream_is_asked_for_its_usage() -> None:
    front = Front(1, "default/m", "hk-key")
    streamed, whole = (front.request("Why?", 7, stream=stream).decode() for stream in (True, False))
    assert "Authorization: Bearer hk-key\r\n" in streamed
    assert '"include_usage": true' in streamed and "include_usage" not in whole
    assert "Authorization" not in Front(1, "m", None).request("Why?", 7, stream=True).decode()


def test_an_answer_of_another_length_is_an_error() -> None:
    answer = ChatAnswer.__new__(ChatAnswer)
    answer.received = bytearray(b'{"usage":{"prompt_tokens":3,"completion_tokens":12,"total_tokens":15}}')
    answer.check(12)
    with pytest.raises(BenchmarkError, match="asked for 1 tokens"):
        answer.check(1)
