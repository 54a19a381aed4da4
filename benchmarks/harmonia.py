"""Harmonia's own engine, run in a process of its own as the peers are."""

from benchmarks.peers.channel import Engine, EngineError, Job, serve


def load(job: Job) -> Engine:
    """Load a backbone and spawn it for inference."""
    raise EngineError(f"engine 'harmonia' cannot run {job.model!r} yet; wire it in benchmarks/harmonia.py")


if __name__ == "__main__":
    serve(load)
