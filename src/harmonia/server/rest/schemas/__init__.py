"""Requests and responses of the REST interface, as they are on the wire."""

from harmonia.server.rest.schemas.adapters import LoadAdapterRequest
from harmonia.server.rest.schemas.chat import ChatRequest, ChatResponse
from harmonia.server.rest.schemas.completions import CompletionRequest, CompletionResponse
from harmonia.server.rest.schemas.embeddings import EmbeddingRequest, EmbeddingResponse
from harmonia.server.rest.schemas.fields import ErrorResponse
from harmonia.server.rest.schemas.models import Deleted, Health, ModelCard, ModelList

__all__ = [
    "ChatRequest",
    "ChatResponse",
    "CompletionRequest",
    "CompletionResponse",
    "Deleted",
    "EmbeddingRequest",
    "EmbeddingResponse",
    "ErrorResponse",
    "Health",
    "LoadAdapterRequest",
    "ModelCard",
    "ModelList",
]
