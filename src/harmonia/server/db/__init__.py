"""What the control plane keeps: tables, the engine behind them, and migrations.

One module for each area. Identifiers are UUIDs, moments are UTC milliseconds since 1970, keys are what people type.
Only `harmonia.server.services` opens transactions.
"""
