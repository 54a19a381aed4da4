"""Evaluation samples as a table."""

from harmonia.client.evaluation import extract_model_key as _extract_model_key
from harmonia.client.evaluation import save_detailed_eval_table as _save_detailed_eval_table

__all__ = ["_extract_model_key", "_save_detailed_eval_table"]
