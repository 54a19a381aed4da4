"""What the engine counts."""

from harmonia.engine.stats import Distribution, StatsRecorder

BOUNDS = (0.001, 0.01, 0.1, float("inf"))
VALUES = [0.0005, 0.001, 0.002, 0.01, 0.05, 0.1, 7.0, 0.001]


def test_many_values_count_as_each_of_them_does() -> None:
    one_by_one, at_once = Distribution(BOUNDS), Distribution(BOUNDS)
    for value in VALUES:
        one_by_one.observe(value)
    at_once.observe_all(VALUES)
    assert one_by_one.counts == at_once.counts == [3, 2, 2, 1]
    assert one_by_one.total == at_once.total


def test_every_gap_between_tokens_is_in_the_snapshot() -> None:
    stats = StatsRecorder()
    for _ in range(3000):
        stats.models["m"].note_token(0.02)
    histogram = stats.snapshot({}, {}).histograms["m"]["inter_token_seconds"]
    assert histogram.counts[-1] == 3000
    assert round(histogram.total, 6) == 60.0
