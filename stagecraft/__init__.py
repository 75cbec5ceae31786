"""The library behind the stages."""
