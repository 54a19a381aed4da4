"""The asynchronous client; `scripts/generate` makes `harmonia.sdk.sync` of it."""
