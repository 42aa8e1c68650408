"""Layers as linear maps of their weights, and what a pass records of them."""
