"""Subgroups, steerable bases, the graded kernel space, and measured equivariance."""
