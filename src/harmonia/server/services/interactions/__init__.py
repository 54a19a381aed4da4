"""Asking models, what was asked and answered, and what people said of it."""
