"""Kernels as sums over pathways, expanded by few products."""
