"""Commands: the only place that wires the control half and the compute half together."""
