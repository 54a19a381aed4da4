"""Figures that the README quotes: Harmonia and its peers on the same work, in one run."""
