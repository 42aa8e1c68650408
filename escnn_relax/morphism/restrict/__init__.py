"""A network on a subgroup of its group, with the same function."""
