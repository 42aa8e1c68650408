"""The kernel space of a layer, graded by irreps and by subgroups, as it is sampled on a grid."""
