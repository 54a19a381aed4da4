"""The rows of the project's performance goals on one GPU, each beside the peer's figure, the limit and the goal."""
