"""How a group moves pixels, voxels and scattered sites."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(__name__)
