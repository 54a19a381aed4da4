"""The GraphQL skin over `harmonia.server.services`: one module for each area, put together in `schema`."""
