"""Services outside, and what they are told."""
