"""Supernets of blocks."""
