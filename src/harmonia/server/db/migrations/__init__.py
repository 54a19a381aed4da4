"""The history of the tables, one module for each step; `harmonia.server.db.migrate` walks it."""
