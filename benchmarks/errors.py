"""The error of this package."""


class BenchmarkError(Exception):
    """What the caller can mend: names the value and the remedy."""
