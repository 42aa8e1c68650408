r"""The conventions of the curvature, in one place.

Symbols. A layer applies a weight matrix :math:`w` (O x D) at R places of each of N samples: at place r of sample n it
reads the row :math:`a_{n,r}` (D numbers); the column :math:`s_{n,r,c}` (O numbers) is the c-th column of a square root
of the loss Hessian in the network's outputs, back-propagated to that place. A steerable convolution is such a layer in
its coefficients: the places are output site x component of the output field, a row has one entry for each (input field,
basis element), a column one for each output field of one representation. Different output representations, pathways and
groups of a grouped convolution are different blocks. A bias is a block of its own.

The Gauss-Newton matrix of one block is :math:`H = \sum_{n,c} v_{n,c} v_{n,c}^\top` with
:math:`v_{n,c} = \mathrm{vec} \sum_r s_{n,r,c} a_{n,r}^\top` (row-major). All blocks are sums over the data set, for one
unit of the likelihood: temperature and observation noise scale them in the evidence, not here.

Approximations
    * ``expand``: :math:`H \approx B \otimes A`, :math:`A = \frac{1}{N R} \sum_{n,r} a a^\top`,
      :math:`B = \sum_{n,r,c} s s^\top`.
    * ``reduce``: :math:`\bar a_n = \frac1R \sum_r a_{n,r}`, :math:`A = \frac1N \sum_n \bar a \bar a^\top`,
      :math:`B = \sum_{n,c} (\sum_r s)(\sum_r s)^\top`.
    * ``eigenvalue-corrected``: expand's eigenbasis with the exact diagonal in it,
      :math:`\lambda_{oi} = \sum_{n,c} (u_o^\top \mathrm{mat}(v_{n,c}) u_i)^2`; a second pass over the data. Among
      (nearly) equal eigenvalues of A, which steerable layers have in pairs and more, the basis is that in which the
      block summed over the axes of B is diagonal, and likewise for B
      (:mod:`~escnn_relax.curvature.factors.eigenvalue_clusters`).
    * ``sketched``: ``expand`` with the same B and the eigenvalues of A from products with vectors: the largest by
      subspace iteration, the others by Lanczos quadrature, their sum exact
      (:mod:`~escnn_relax.curvature.factors.sketch`). A is that of a sample of the rows.
    * ``exact``: H itself, of a whole parameter with all its blocks together.
    * ``diagonal``: the diagonal of H.

    (Eschenhagen, Immer, Turner, Schneider, Hennig: *Kronecker-factored approximate curvature for modern neural network
    architectures*, NeurIPS 2023, for the first two.)

Biases read the constant row 1, so that :math:`H = \sum_{n,c} (\sum_r s)(\sum_r s)^\top` costs nothing and is exact;
that is used under every approximation. ``bias="kronecker"`` takes ``expand``'s :math:`B` instead, as laplace-torch
does.

A weight that is used several times in a pass, by one layer or by several of one kind that share it, just has more
places.

Samples that count :math:`w_n`, by weights of their own, of their class or of their outputs (then the mean): columns
carry :math:`\sqrt{w_n}`, and A is the weighted mean, :math:`A = \sum_{n,r} w_n a a^\top / (R \sum_n w_n)`. So a weight
is a repetition: every form is that of the data with each sample as often as it counts, which is exact where the columns
are the same for all samples, and what does not count is not there.

Observation noise of each output: H is the sum over outputs :math:`\sum_c w_c H_c`, with the precision of output c
relative to the geometric mean of all. Each :math:`H_c` is summed by itself (``apart``); Kronecker forms share A, and
their B is the weighted sum. Eigenvalues follow a change of the noise to first order, by each output's diagonal in their
eigenbasis (:meth:`.Factor.diagonals`).

Minibatches of M samples: sums over n add up; ``expand`` and ``reduce`` divide A once, at the end, by the number of rows
seen, each as often as its sample counts. With ``samples=m`` the columns are m draws from the network's own predictive
distribution, each scaled by :math:`1/\sqrt m`, instead of one for each output.
"""

from __future__ import annotations

import torch

from ..deprecation import former_names

__all__ = ["DECOMPOSED", "FACTOR_BYTES", "FACTOR_DTYPE"]

#: Factors are summed and decomposed in float64, whatever the network's own precision.
FACTOR_DTYPE = torch.float64

FACTOR_BYTES = 8

#: Bytes for each entry of a matrix while it is decomposed: symmetrised, copied, eigenvectors, working space.
DECOMPOSED = 5 * FACTOR_BYTES


__getattr__ = former_names(__name__)
