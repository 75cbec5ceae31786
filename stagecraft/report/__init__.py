"""The page about a run, its charts and tables."""
