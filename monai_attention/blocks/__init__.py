"""Attention mechanisms and parts of networks, for any number of spatial axes."""
