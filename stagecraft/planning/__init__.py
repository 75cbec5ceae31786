"""What a run will cost, told before it: from params and configs alone, and a few seconds of timing."""
