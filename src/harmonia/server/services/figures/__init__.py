"""Figures of what was asked, answered and scored: for charts, bills and reports."""
