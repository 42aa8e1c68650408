"""[G]-mixed layers: one kernel, a weighted sum over several groups."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(__name__)
