"""The cost of a run before it starts: from params and configs alone, and a few seconds of timing."""
