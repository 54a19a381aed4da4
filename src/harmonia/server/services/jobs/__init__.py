"""Recipes, the jobs that run them, and what these report."""
