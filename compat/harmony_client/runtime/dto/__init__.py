"""Records that the platform exchanges."""
