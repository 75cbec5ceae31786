"""The params: read, checked, laid over one another."""
