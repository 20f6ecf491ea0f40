"""Gram matrices, added up in place.

Only the upper triangle is kept: half the work, no second matrix, and no copy. It all goes through scipy, like the
factorisations that follow: numpy brings a BLAS of its own, and two taking turns make their threads wait for one another.
"""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
from scipy.linalg.blas import dgemv, dsyrk

Array = npt.NDArray[np.float64]


def add_gram(upper: Array, rows: npt.NDArray[np.floating], sign: float = 1.0) -> None:
    """Add `sign * rows.T @ rows` to the upper triangle of a matrix, in place; what is below the diagonal means nothing.

    Args:
        upper: shape (dim, dim), C-contiguous.
        rows: shape (n, dim).
        sign: 1 to add, -1 to take away.
    """
    if not len(rows):
        return
    # To LAPACK, which counts columns first, the upper triangle is the lower one of the transpose.
    result = dsyrk(sign, np.ascontiguousarray(rows, np.float64).T, beta=1.0, c=upper.T, lower=1, overwrite_c=1)
    assert np.shares_memory(result, upper)


def weighted_sum(weights: Array, rows: npt.NDArray[np.floating]) -> Array:
    """`weights @ rows`: shape (dim,), from weights of shape (n,) and rows of shape (n, dim)."""
    found: Array = dgemv(1.0, np.ascontiguousarray(rows, np.float64).T, weights)
    return found


def products(rows: npt.NDArray[np.floating], vector: Array) -> Array:
    """`rows @ vector`: shape (n,), from rows of shape (n, dim) and a vector of shape (dim,)."""
    found: Array = dgemv(1.0, np.ascontiguousarray(rows, np.float64).T, vector, trans=1)
    return found


def mirrored(upper: Array) -> Array:
    """The symmetric matrices, shape (..., dim, dim), of upper triangles."""
    above = np.triu(upper)
    return above + np.swapaxes(np.triu(upper, 1), -1, -2)
