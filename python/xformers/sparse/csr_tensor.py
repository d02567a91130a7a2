"""A batch of sparse matrices that share one pattern, in compressed rows."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from xformers import operators
from xformers.ops import masked_matmul

from ._tensor import SparseTensor, same_part
from .utils import _diffsort

TransposeInfo = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]

_HAS_CUDA = torch._C._dispatch_has_kernel_for_dispatch_key("xformers::csr_transpose", "CUDA")
_DEVICES = ("cpu", "meta", "cuda") if _HAS_CUDA else ("cpu", "meta")  # that have the operators


class SparseCSRTensor(SparseTensor):
    """Matrices `[B, m, n]` with one pattern and values of their own: B times the values, once the places.

    Arguments:
        row_offsets: int32 `[m + 1]`, ascending from 0 to nnz; row r has the values from `row_offsets[r]` on.
        column_indices: int32 `[nnz]`, each in [0, n).
        values: `[B, nnz]`, any dtype (bool for masks); any number of them.
        shape: `(B, m, n)`.

    AssertionError for other ranks; ValueError where offsets descend, columns lie outside or sizes do not fit. Products
    and softmax are differentiable in `values()`. docs/ops/sparse-tensors.md lists the functions.
    """

    _offsets: torch.Tensor
    _columns: torch.Tensor
    _offsets_t: torch.Tensor | None  # the pattern by columns, once it is needed
    _columns_t: torch.Tensor | None
    _perm: torch.Tensor | None
    _parts = ("_offsets", "_columns", "_offsets_t", "_columns_t", "_perm")

    @staticmethod
    def __new__(
        cls: type[SparseCSRTensor],
        row_offsets: torch.Tensor,
        column_indices: torch.Tensor,
        values: torch.Tensor,
        shape: Any,
    ) -> SparseCSRTensor:
        assert row_offsets.ndim == 1 and column_indices.ndim == 1 and values.ndim == 2 and len(shape) == 3, (
            f"SparseCSRTensor: row_offsets has {row_offsets.ndim} dimensions, column_indices {column_indices.ndim}, "
            f"values {values.ndim} and shape {len(shape)}, expected 1, 1, 2 and 3.  Fix: pass [m + 1], [nnz], [B, nnz] "
            "and (B, m, n)."
        )
        batch, rows, columns = shape
        got = (len(row_offsets), *values.shape)
        if got != (rows + 1, batch, len(column_indices)):
            raise ValueError(
                f"SparseCSRTensor: row_offsets, values are [{got[0]}], {list(got[1:])}, expected [{rows + 1}], "
                f"[{batch}, {len(column_indices)}].  Fix: one offset more than rows, one value per column index."
            )
        tensor = cls._empty(cls, tuple(shape), values.contiguous())
        tensor._offsets, tensor._columns = row_offsets.contiguous(), column_indices.contiguous()
        # It looks at all of the pattern, once, so that it is checked with it.
        known = row_offsets.device.type in _DEVICES
        transposed = operators.csr_transpose(tensor._offsets, tensor._columns, columns) if known else (None, None, None)
        tensor._offsets_t, tensor._columns_t, tensor._perm = transposed
        return tensor

    @classmethod
    def from_dense(cls, matrix: torch.Tensor) -> SparseCSRTensor:
        """The non-zeros of `[B, m, n]`; ValueError where their places differ over the batch."""
        values, row_offsets, column_indices = operators.csr_from_dense(matrix)
        return cls(row_offsets, column_indices, values, matrix.shape)

    @classmethod
    def from_sparse_csr(cls, matrix: torch.Tensor) -> SparseCSRTensor:
        """Of PyTorch's own layout, `[m, n]` or `[B, m, n]` with one pattern; int32 indices are not copied."""
        offsets, columns, values = matrix.crow_indices(), matrix.col_indices(), matrix.values()
        if matrix.ndim == 2:
            offsets, columns, values = offsets[None], columns[None], values[None]
        if not (_all_alike(offsets) and _all_alike(columns)):
            raise ValueError(_other_patterns("from_sparse_csr"))
        return cls(offsets[0].int(), columns[0].int(), values, (len(values), *matrix.shape[-2:]))

    @classmethod
    def from_sparse_coo(cls, matrix: torch.Tensor) -> SparseCSRTensor:
        """Of PyTorch's own layout, `[m, n]` or `[B, m, n]` with one pattern; it is coalesced first."""
        matrix = matrix.coalesce()
        rows, columns = matrix.indices()[-2:]
        batch = matrix.shape[0] if matrix.ndim == 3 else 1
        nnz = len(rows) // max(batch, 1)
        alike = nnz * batch == len(rows)
        if alike and matrix.ndim == 3:
            elements = torch.arange(batch, device=rows.device)
            alike = torch.equal(matrix.indices()[0], elements.repeat_interleave(nnz))
        if not (alike and all(_all_alike(places.view(batch, nnz)) for places in (rows, columns))):
            raise ValueError(_other_patterns("from_sparse_coo"))
        m, n = matrix.shape[-2:]
        offsets = torch.searchsorted(rows[:nnz], torch.arange(m + 1, device=rows.device), out_int32=True)
        return cls(offsets, columns[:nnz].int(), matrix.values().view(batch, nnz), (batch, m, n))

    @classmethod
    def _wrap(
        cls,
        shape: Any,
        values: torch.Tensor,
        row_indices: torch.Tensor | None,
        row_offsets: torch.Tensor,
        column_indices: torch.Tensor,
        transp_info: TransposeInfo | None,
    ) -> SparseCSRTensor:
        """Of parts that are right: nothing is checked or computed."""
        tensor = cls._empty(cls, tuple(shape), values)
        tensor._offsets, tensor._columns = row_offsets, column_indices
        tensor._offsets_t, tensor._columns_t, tensor._perm = (None,) * 3 if transp_info is None else transp_info[1:]
        return tensor

    @property
    def _csr_row_indices(self) -> torch.Tensor:
        """int32 `[m]`: rows by decreasing length."""
        return _diffsort(self._offsets)

    @property
    def _csr_row_offsets(self) -> torch.Tensor:
        return self._offsets

    @property
    def _csr_column_indices(self) -> torch.Tensor:
        return self._columns

    @property
    def _csr_transp_info(self) -> TransposeInfo:
        """The pattern by columns: row_indices_t, row_offsets_t, column_indices_t, perm."""
        offsets, columns, perm = self._transposed()
        return _diffsort(offsets), offsets, columns, perm

    def _transposed(self) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        if self._offsets_t is None or self._columns_t is None or self._perm is None:
            transposed = operators.csr_transpose(self._offsets, self._columns, self.shape[2])
            self._offsets_t, self._columns_t, self._perm = transposed
            return transposed
        return self._offsets_t, self._columns_t, self._perm

    def _same_places(self, other: SparseCSRTensor) -> bool:
        return same_part(self._offsets, other._offsets) and same_part(self._columns, other._columns)

    def to_dense(self) -> torch.Tensor:  # type: ignore[override]
        """`[B, m, n]` with zeros elsewhere; values that share a place add up. Differentiable."""
        return _to_dense(self)

    def to_sparse_csr(self) -> torch.Tensor:  # type: ignore[override]
        """In PyTorch's own layout: `[m, n]` for a batch of one, else `[B, m, n]`."""
        batch = self.shape[0]
        parts = (self._offsets, self._columns, self._stored)
        if batch == 1:
            return torch.sparse_csr_tensor(parts[0], parts[1], parts[2][0], self.shape[1:])
        offsets, columns = (part.expand(batch, -1).contiguous() for part in parts[:2])
        return torch.sparse_csr_tensor(offsets, columns, parts[2], self.shape)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"sparse_csr_tensor(shape={list(self.shape)}, values={self._stored!r})"


def _all_alike(rows: torch.Tensor) -> bool:
    return len(rows) < 2 or torch.equal(rows, rows[:1].expand_as(rows))


def _other_patterns(where: str) -> str:
    return (
        f"SparseCSRTensor.{where}: the matrices have other places from one batch element to another, expected one "
        "pattern.  Fix: make a tensor of each."
    )


def _to_dense(tensor: SparseCSRTensor) -> torch.Tensor:
    return operators.csr_to_dense(tensor._stored, tensor._offsets, tensor._columns, tensor.shape[2])


def _matmul(a: Any, b: Any) -> torch.Tensor:
    sparse, dense = (a, b) if isinstance(a, SparseCSRTensor) else (b, a)
    if isinstance(dense, SparseTensor):
        raise TypeError(
            f"SparseCSRTensor: matmul with {type(dense).__name__}, expected a dense tensor.  Fix: call to_dense()."
        )
    assert sparse.ndim == 3 and dense.ndim == 3, (
        f"SparseCSRTensor: matmul with {list(dense.shape)}, expected 3 dimensions.  Fix: flatten the batch."
    )
    offsets, columns, values = sparse._offsets, sparse._columns, sparse._stored
    offsets_t, columns_t, perm = sparse._transposed()
    _, m, n = sparse.shape
    if sparse is a:
        return operators.spmm_sputnik(dense, offsets, values, offsets, columns, m, offsets_t, columns_t, perm)
    return operators.spmm_sputnik(
        dense.mT, offsets, values, offsets, columns, n, offsets_t, columns_t, perm, transposed=True
    ).mT


def _masked_matmul(a: torch.Tensor, b: torch.Tensor, mask: Any = None) -> SparseCSRTensor:
    if isinstance(a, SparseTensor) or isinstance(b, SparseTensor):
        raise TypeError("masked_matmul: a or b is sparse, expected that only mask is.  Fix: call to_dense() on them.")
    assert a.ndim == 3 and b.ndim == 3, (
        f"masked_matmul: a and b are {list(a.shape)} and {list(b.shape)}, expected [B, m, k] and [B, k, n] beside a "
        "sparse mask.  Fix: flatten the batch."
    )
    if (a.shape[1], b.shape[2]) != mask.shape[1:]:
        raise ValueError(
            f"masked_matmul: a @ b is [{a.shape[1]}, {b.shape[2]}], expected {list(mask.shape[1:])}, as the mask.  "
            "Fix: crop one of them."
        )
    pattern = (mask._offsets, mask._columns)
    values = operators.sddmm_sputnik(a, b.mT, pattern[0], *pattern, *mask._transposed())
    return mask.with_values(values, (len(a), *mask.shape[1:]))


def _softmax(tensor: SparseCSRTensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> SparseCSRTensor:
    if dim not in (-1, 2):
        raise TypeError(f"SparseCSRTensor: softmax over dimension {dim}, expected the last.  Fix: transpose it first.")
    values = tensor._stored if dtype is None else tensor._stored.to(dtype)
    offsets, columns = tensor._offsets, tensor._columns
    return tensor.with_values(
        operators.sparse_softmax_sputnik(tensor.shape[1], tensor.shape[2], offsets, values, offsets, columns)
    )


def _transpose(tensor: SparseCSRTensor, dim0: int, dim1: int) -> SparseCSRTensor:
    if {dim0 % 3, dim1 % 3} != {1, 2}:
        raise TypeError(
            f"SparseCSRTensor: transpose({dim0}, {dim1}), expected the last two.  Fix: use transpose(1, 2)."
        )
    offsets, columns, perm = tensor._transposed()
    batch, rows, cols = tensor.shape
    result = tensor._empty(SparseCSRTensor, (batch, cols, rows), tensor._stored.index_select(1, perm))
    result._offsets, result._columns = offsets, columns
    result._offsets_t = result._columns_t = result._perm = None
    return result


def _check_same_pattern(a: Any, b: Any, name: str) -> None:
    both = isinstance(a, SparseCSRTensor) and isinstance(b, SparseCSRTensor)
    if both and a.shape[1:] == b.shape[1:] and a._same_places(b):
        return
    raise NotImplementedError(
        f"SparseCSRTensor: {name} with {'another pattern' if both else type(b).__name__}, expected the same pattern.  "
        "Fix: use to_dense(), or values() where the places are known to agree."
    )


def _of_both(a: SparseCSRTensor, b: SparseCSRTensor, values: torch.Tensor) -> SparseCSRTensor:
    return a.with_values(values, (len(values), *a.shape[1:]))


def _add(a: Any, b: Any) -> SparseCSRTensor:
    _check_same_pattern(a, b, "add")
    return _of_both(a, b, a._stored + b._stored)


def _mul(a: Any, b: Any) -> SparseCSRTensor:
    if not isinstance(a, SparseCSRTensor):
        a, b = b, a
    if isinstance(b, numbers.Number) or (type(b) is torch.Tensor and b.ndim == 0):
        return a.with_values(a._stored * b)
    _check_same_pattern(a, b, "mul")
    return _of_both(a, b, a._stored * b._stored)


def _logical_and(a: Any, b: Any) -> SparseCSRTensor:
    if not isinstance(a, SparseCSRTensor):
        a, b = b, a
    if isinstance(b, SparseTensor):
        raise NotImplementedError("SparseCSRTensor: & with a sparse tensor.  Fix: call to_dense() on one of them.")
    return SparseCSRTensor.from_dense(torch.logical_and(a.to_dense(), b))


SparseCSRTensor._functions = {
    masked_matmul: _masked_matmul,
    torch.add: _add,
    torch.bmm: _matmul,
    torch.logical_and: _logical_and,
    torch.matmul: _matmul,
    torch.mul: _mul,
    torch.nn.functional.softmax: _softmax,
    torch.softmax: _softmax,
    torch.transpose: _transpose,
    torch.Tensor.__and__: _logical_and,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.__rand__: _logical_and,
    torch.Tensor.__rmatmul__: lambda a, b: _matmul(b, a),
    torch.Tensor.__rmul__: _mul,
    torch.Tensor.add: _add,
    torch.Tensor.__add__: _add,
    torch.Tensor.bmm: _matmul,
    torch.Tensor.logical_and: _logical_and,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mul: _mul,
    torch.Tensor.__mul__: _mul,
    torch.Tensor.softmax: _softmax,
    torch.Tensor.to_dense: _to_dense,
    torch.Tensor.transpose: _transpose,
}

__all__ = ["SparseCSRTensor"]
