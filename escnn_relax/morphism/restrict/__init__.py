"""A network on a subgroup of its group, with the same function."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(__name__)
