"""Layers that may break translations, and kernels from scattered anchors."""
