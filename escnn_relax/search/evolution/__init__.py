"""The evolutionary search along the lattice of subgroups."""
