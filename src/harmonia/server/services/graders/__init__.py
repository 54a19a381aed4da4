"""What judges completions."""
