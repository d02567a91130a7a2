"""A sparse attention mask: scores are computed, normalised and multiplied where it has values, and nowhere else."""

from __future__ import annotations

from typing import Any

import torch

from xformers.ops import masked_matmul
from xformers.sparse import SparseCSRTensor
from xformers.sparse._tensor import moved
from xformers.sparse.csr_tensor import TransposeInfo


class SparseCS:
    """The non-zeros of a mask, wrapped around a `SparseCSRTensor`; one pattern serves any batch.

    Arguments:
        matrix: `[S, T]`, or `[B, S, T]` with one pattern; bool or floating.
        device: where it goes; by default it stays.

    softmax(mask.matmul_with_mask(q, k^T)).spmm(v) is attention over the pattern; `matmul_with_mask` looks at the
    mask's places, not at its values.
    """

    _mat: SparseCSRTensor
    is_sparse = True
    ndim = 3

    def __init__(self, matrix: torch.Tensor, device: torch.device | str | None = None):
        if matrix.ndim == 2:
            matrix = matrix[None]
        assert matrix.ndim == 3, (
            f"SparseCS: matrix is {list(matrix.shape)}, expected [S, T] or [B, S, T].  Fix: flatten it."
        )
        tensor = SparseCSRTensor.from_dense(matrix)
        self._mat = tensor if device is None else moved(tensor, device)

    @classmethod
    def _of(cls, tensor: torch.Tensor) -> SparseCS:
        assert isinstance(tensor, SparseCSRTensor)
        mask = cls.__new__(cls)
        mask._mat = tensor
        return mask

    @classmethod
    def wrap(
        cls,
        shape: Any,
        values: torch.Tensor,
        row_indices: torch.Tensor | None,
        row_offsets: torch.Tensor,
        column_indices: torch.Tensor,
        _transp_info: TransposeInfo | None = None,
    ) -> SparseCS:
        """Of parts that are right, values `[B, nnz]`; shape `(S, T)` or `(B, S, T)`. Nothing is checked."""
        whole = (len(values), *tuple(shape)[-2:])
        return cls._of(SparseCSRTensor._wrap(whole, values, row_indices, row_offsets, column_indices, _transp_info))

    @property
    def shape(self) -> torch.Size:
        """(S, T)"""
        return self._mat.shape[1:]

    @property
    def dtype(self) -> torch.dtype:
        return self._mat.dtype

    @property
    def device(self) -> torch.device:
        return self._mat.device

    @property
    def values(self) -> torch.Tensor:
        """`[B, nnz]`"""
        return self._mat.values()

    @property
    def row_indices(self) -> torch.Tensor:
        return self._mat._csr_row_indices

    @property
    def row_offsets(self) -> torch.Tensor:
        return self._mat._csr_row_offsets

    @property
    def column_indices(self) -> torch.Tensor:
        return self._mat._csr_column_indices

    @property
    def _transp_info(self) -> TransposeInfo:
        return self._mat._csr_transp_info

    def __mul__(self, other: float) -> SparseCS:
        return self._of(self._mat * other)

    __rmul__ = __mul__

    def __add__(self, other: SparseCS) -> SparseCS:
        """Of one pattern; NotImplementedError for another."""
        assert isinstance(other, SparseCS), f"SparseCS: + {type(other).__name__}, expected SparseCS.  Fix: wrap it."
        return self._of(self._mat + other._mat)

    def matmul_with_mask(self, a: torch.Tensor, b: torch.Tensor) -> SparseCS:
        """a `[B, S, k]` @ b `[B, k, T]` at the places of the mask."""
        return self._of(masked_matmul(a, b, self._mat))

    def softmax(self) -> SparseCS:
        """Over the values of each row."""
        return self._of(torch.nn.functional.softmax(self._mat, -1))

    def spmm(self, b: torch.Tensor) -> torch.Tensor:
        """self @ b, `[B, T, n]` -> `[B, S, n]`."""
        return torch.bmm(self._mat, b)

    def transpose(self) -> SparseCS:
        """`[T, S]`."""
        return self._of(torch.transpose(self._mat, 1, 2))

    def to(self, device: torch.device | str) -> SparseCS:
        """On another device; itself where it is there."""
        return self._of(moved(self._mat, device))

    def to_dense(self) -> torch.Tensor:
        """`[B, S, T]` with zeros elsewhere."""
        return self._mat.to_dense()

    def logical_and(self, other: torch.Tensor) -> SparseCS:
        """What is non-zero here and in a dense tensor `[S, T]` or `[B, S, T]`, as bool. Another sparse mask is a
        NotImplementedError."""
        dense = other._mat if isinstance(other, SparseCS) else other
        return self._of(torch.logical_and(self._mat, dense))

    __and__ = logical_and


__all__ = ["SparseCS"]
