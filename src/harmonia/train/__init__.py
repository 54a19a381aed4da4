"""From samples to gradients: what a training call reads, what it minimises, and how micro-batches of it run."""
