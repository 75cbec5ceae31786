"""Search space, supernet training, scoring and selection."""
