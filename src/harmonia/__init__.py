"""Harmonia: one runtime that trains and serves language models."""

__version__ = "0.1.0"
