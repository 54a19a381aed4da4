"""Schedule, run, finish: the loop that turns requests into tokens."""
