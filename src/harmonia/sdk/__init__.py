"""The client of a Harmonia server: `Adaptive`, and `AsyncAdaptive` for programs that use asyncio.

adaptive = Adaptive(base_url="http://127.0.0.1:9000", api_key="hk-...", default_project="support")
adaptive.chat.create([{"role": "user", "content": "Hello"}]).choices[0].message.content
"""

from harmonia.sdk.aio.client import AsyncAdaptive
from harmonia.sdk.sync.client import Adaptive

__all__ = ["Adaptive", "AsyncAdaptive"]
