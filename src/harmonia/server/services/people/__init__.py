"""Who there is, how they log in, and what they work in."""
