"""Layers as linear maps of their weights, and what a pass records of them."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(__name__)
