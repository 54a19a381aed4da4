"""Supervised fine-tuning: teach a model to answer as a data set does."""
