"""Sums over the data: second moments, pulled back to coefficients."""
