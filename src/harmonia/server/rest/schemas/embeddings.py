"""`POST /embeddings`."""

from __future__ import annotations

from typing import Annotated, Literal

from msgspec import Meta

from harmonia.server.rest.schemas.completions import PromptInput
from harmonia.server.rest.schemas.fields import Milliseconds, Name, RequestModel, ResponseModel, UsageReport


class EmbeddingRequest(RequestModel, kw_only=True):
    """Texts or tokens to embed."""

    model: Name
    """Key of a backbone or an adapter."""
    input: PromptInput
    """A text, a list of texts, a list of token ids, or a list of such lists."""
    encoding_format: Literal["float", "base64", "Float", "Base64"] | None = None
    """Numbers, or the bytes of little-endian float32."""
    dimensions: Annotated[int, Meta(ge=1, le=2**31 - 1)] | None = None
    """Keep this many leading components, normalised again."""
    user: str | None = None
    """Who asks."""
    session_id: Name | None = None
    """Accepted without effect."""
    max_ttft_ms: Milliseconds | None = None
    """Bound on the time in the queue."""


class EmbeddingItem(ResponseModel, kw_only=True, omit_defaults=False):
    """One vector."""

    index: int
    embedding: list[float] | str
    object: str = "embedding"


class EmbeddingResponse(ResponseModel, kw_only=True, omit_defaults=False):
    """The vectors, in the order of the input."""

    data: list[EmbeddingItem]
    model: str
    usage: UsageReport
    object: str = "list"
