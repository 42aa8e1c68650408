"""Measured and certified errors of equivariance."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(__name__)
