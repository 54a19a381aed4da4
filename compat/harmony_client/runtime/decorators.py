"""The mark of a recipe's main function."""

from harmonia.client.recipe import recipe_main

__all__ = ["recipe_main"]
