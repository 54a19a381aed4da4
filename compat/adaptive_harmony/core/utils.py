"""Concurrency, mini-batches and records of arguments."""

from harmonia.client.evaluation import stringify_thread
from harmonia.trainers import async_map, async_map_batch, async_map_fallible, get_minibatches
from harmonia.trainers.batching import sample_data, weighted_mean
from harmonia.trainers.records import hash_dataset, hash_hyperparams, log_args

__all__ = [
    "async_map",
    "async_map_batch",
    "async_map_fallible",
    "get_minibatches",
    "hash_dataset",
    "hash_hyperparams",
    "log_args",
    "sample_data",
    "stringify_thread",
    "weighted_mean",
]
