"""The mark of a recipe's main function."""

from harmonia.client.recipe import InputConfig, RecipeContext, recipe_main

__all__ = ["InputConfig", "RecipeContext", "recipe_main"]
