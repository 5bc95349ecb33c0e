"""Samples from trained generators: images, interpolations, latent edits and their directions."""
