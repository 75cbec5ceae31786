"""Optimal denoiser, similarity and partition of the timesteps into intervals."""
