"""The checks before the first job."""
