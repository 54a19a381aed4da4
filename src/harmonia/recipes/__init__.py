"""The built-in recipes, one folder each, and the catalogue that finds them by key."""

from harmonia.recipes.catalogue import find_recipe, recipe_keys, recipe_summary

__all__ = ["find_recipe", "recipe_keys", "recipe_summary"]
