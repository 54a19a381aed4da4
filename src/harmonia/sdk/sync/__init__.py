"""The synchronous client: `scripts/generate` makes it of `harmonia.sdk.aio`."""
