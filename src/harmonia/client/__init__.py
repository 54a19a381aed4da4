"""Train and sample models on a worker: `client = await get_client("ws://127.0.0.1:9100")`."""

from harmonia.client.builder import ModelBuilder
from harmonia.client.connect import HarmonyClient, get_client
from harmonia.client.inference import InferenceModel
from harmonia.client.spawning import Spawning
from harmonia.client.timings import Timings
from harmonia.client.tools import Tool
from harmonia.client.training import TrainingModel
from harmonia.threads import StringThread, StringTurn, TokenizedThread, TokenizedTurn

__all__ = [
    "HarmonyClient",
    "InferenceModel",
    "ModelBuilder",
    "Spawning",
    "StringThread",
    "StringTurn",
    "Timings",
    "TokenizedThread",
    "TokenizedTurn",
    "Tool",
    "TrainingModel",
    "get_client",
]
