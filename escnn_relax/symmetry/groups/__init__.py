"""Groups, their subgroups and the lattice of these, by ids and by names; representations seen by a subgroup."""
