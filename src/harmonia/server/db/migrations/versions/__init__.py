"""The steps. They are made by `python -m harmonia.server.db.migrate new` and, once released, never changed."""
