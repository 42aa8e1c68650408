"""Measured and certified errors of equivariance."""

from ...deprecation import former_names

#: What this path gave before it held more than one file.
__getattr__ = former_names(
    __name__,
    {
        "assert_equivariant": "escnn_relax.symmetry.equivariance.model_error:assert_equivariant",
        "equivariance_error": "escnn_relax.symmetry.equivariance.model_error:equivariance_error",
    },
)
