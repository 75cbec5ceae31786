"""Noise processes, losses and sampling."""
