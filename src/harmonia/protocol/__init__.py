"""The words between the control half and the workers."""
