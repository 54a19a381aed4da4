"""Model Acceleration (Speculative Decoding): teach a small model to propose what a large one will say."""
