"""OpenAI's REST interface and what Harmonia adds to it."""
