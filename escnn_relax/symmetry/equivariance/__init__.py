"""Measured and certified errors of equivariance."""
