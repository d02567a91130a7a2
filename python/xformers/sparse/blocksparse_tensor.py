"""Sparse matrices of dense square blocks."""

from __future__ import annotations

import numbers
from typing import Any

import torch

from xformers import operators
from xformers.ops import masked_matmul

from ._tensor import SparseTensor, same_part


class BlockSparseTensor(SparseTensor):
    """Matrices `[B, C, h * bs, w * bs]` of which each channel stores some blocks.

    Arguments:
        values: `[B, nnz, bs, bs]`, blocks in the order channel, block row, block column; bs a multiple of 16.
        layout: `[C, h, w]`, bool or integers: where it is not 0, a block is stored.

    AssertionError for values that are not 4-D with square blocks of 16 or more, or on another device than layout;
    ValueError where layout has another number of blocks. Products and softmax are differentiable in `values()`.
    docs/ops/sparse-tensors.md lists the functions.
    """

    _layout: torch.Tensor
    _offsets: torch.Tensor
    _columns: torch.Tensor
    _offsets_t: torch.Tensor
    _columns_t: torch.Tensor
    _perm: torch.Tensor
    _parts = ("_layout", "_offsets", "_columns", "_offsets_t", "_columns_t", "_perm")

    @staticmethod
    def __new__(cls: type[BlockSparseTensor], values: torch.Tensor, layout: torch.Tensor) -> BlockSparseTensor:
        assert values.ndim == 4 and values.shape[2] == values.shape[3] >= 16 and layout.ndim == 3, (
            f"BlockSparseTensor: values are {list(values.shape)} and layout is {list(layout.shape)}, expected "
            "[B, nnz, bs, bs] with bs of 16 or more and [C, h, w].  Fix: reshape them."
        )
        assert values.device == layout.device, (
            f"BlockSparseTensor: values are on {values.device}, layout on {layout.device}, expected one device.  Fix: "
            "move one of them."
        )
        tensor = cls._raw_wrap(values.contiguous(), layout)
        if len(tensor._columns) != values.shape[1]:
            raise ValueError(
                f"BlockSparseTensor: values have {values.shape[1]} blocks, expected {len(tensor._columns)}, those of "
                "layout.  Fix: give one block per non-zero of layout."
            )
        return tensor

    @classmethod
    def _raw_wrap(cls, values: torch.Tensor, layout: torch.Tensor) -> BlockSparseTensor:
        """Of parts that are right: nothing is checked."""
        channels, rows, columns = layout.shape
        block = values.shape[2]
        tensor = cls._empty(cls, (len(values), channels, rows * block, columns * block), values)
        tensor._layout = layout
        tables = operators.blocksparse_tables(layout)
        tensor._offsets, tensor._columns, tensor._offsets_t, tensor._columns_t, tensor._perm = tables
        return tensor

    @classmethod
    def _wrap(cls, values: torch.Tensor, like: BlockSparseTensor) -> BlockSparseTensor:
        """Other values, `[B, nnz, bs, bs]` of any B, in the places of `like`."""
        return like.with_values(values, (len(values), *like.shape[1:]))

    def _same_places(self, other: BlockSparseTensor) -> bool:
        return same_part(self._offsets, other._offsets) and same_part(self._columns, other._columns)

    def to_dense(self) -> torch.Tensor:  # type: ignore[override]
        """`[B, C, h * bs, w * bs]` with zeros elsewhere. Differentiable."""
        return _to_dense(self)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"block_sparse_tensor(shape={list(self.shape)}, values={self._stored!r})"


def _to_dense(tensor: BlockSparseTensor) -> torch.Tensor:
    _, channels, _, n = tensor.shape
    return operators.blocksparse_to_dense(tensor._stored, tensor._offsets, tensor._columns, channels, n)


def _matmul(a: Any, b: Any) -> torch.Tensor:
    sparse, dense = (a, b) if isinstance(a, BlockSparseTensor) else (b, a)
    if isinstance(dense, SparseTensor):
        raise TypeError(
            f"BlockSparseTensor: matmul with {type(dense).__name__}, expected a dense tensor.  Fix: call to_dense()."
        )
    assert dense.ndim == 4, (
        f"BlockSparseTensor: matmul with {list(dense.shape)}, expected [B, C, rows, columns].  Fix: reshape it."
    )
    offsets, columns, values = sparse._offsets, sparse._columns, sparse._stored
    offsets_t, columns_t, perm = sparse._offsets_t, sparse._columns_t, sparse._perm
    _, _, m, n = sparse.shape
    if sparse is a:
        return operators.blocksparse_dsd(values, dense, offsets, columns, m, offsets_t, columns_t, perm)
    return operators.blocksparse_dsd(
        values, dense.mT, offsets, columns, n, offsets_t, columns_t, perm, transposed=True
    ).mT


def _masked_matmul(a: torch.Tensor, b: torch.Tensor, mask: Any = None) -> BlockSparseTensor:
    if isinstance(a, SparseTensor) or isinstance(b, SparseTensor):
        raise TypeError("masked_matmul: a or b is sparse, expected that only mask is.  Fix: call to_dense() on them.")
    assert a.ndim == 4 and b.ndim == 4, (
        f"masked_matmul: a and b are {list(a.shape)} and {list(b.shape)}, expected [B, C, m, k] and [B, C, k, n] "
        "beside a block-sparse mask.  Fix: unflatten the batch."
    )
    if (a.shape[1], a.shape[2], b.shape[3]) != mask.shape[1:]:
        raise ValueError(
            f"masked_matmul: a @ b is {[a.shape[1], a.shape[2], b.shape[3]]} without its batch, expected "
            f"{list(mask.shape[1:])}, as the mask.  Fix: crop one of them."
        )
    values = operators.blocksparse_sdd(
        a, b, mask._offsets, mask._columns, mask._stored.shape[2], mask._offsets_t, mask._columns_t, mask._perm
    )
    return BlockSparseTensor._wrap(values, mask)


def _softmax(tensor: BlockSparseTensor, dim: int, dtype: torch.dtype | None = None, **_: Any) -> BlockSparseTensor:
    if dim not in (-1, 2, 3):
        raise TypeError(
            f"BlockSparseTensor: softmax over dimension {dim}, expected the last.  Fix: transpose it first."
        )
    values = tensor._stored if dtype is None else tensor._stored.to(dtype)
    channels, n = tensor.shape[1], tensor.shape[3]
    return tensor.with_values(operators.blocksparse_softmax(values, tensor._offsets, tensor._columns, channels, n))


def _transpose(tensor: BlockSparseTensor, dim0: int, dim1: int) -> BlockSparseTensor:
    if {dim0 % 4, dim1 % 4} != {2, 3}:
        raise TypeError(f"BlockSparseTensor: transpose({dim0}, {dim1}), expected the last two.  Fix: transpose(2, 3).")
    blocks = tensor._stored.index_select(1, tensor._perm).mT.contiguous()
    return BlockSparseTensor._raw_wrap(blocks, tensor._layout.mT.contiguous())


def _check_same_layout(a: Any, b: Any, name: str) -> None:
    both = isinstance(a, BlockSparseTensor) and isinstance(b, BlockSparseTensor)
    if both and a.shape[1:] == b.shape[1:] and a._stored.shape[1:] == b._stored.shape[1:] and a._same_places(b):
        return
    raise NotImplementedError(
        f"BlockSparseTensor: {name} with {'another layout' if both else type(b).__name__}, expected the same layout.  "
        "Fix: use to_dense(), or values() where the blocks are known to agree."
    )


def _add(a: Any, b: Any) -> BlockSparseTensor:
    _check_same_layout(a, b, "add")
    return BlockSparseTensor._wrap(a._stored + b._stored, a)


def _mul(a: Any, b: Any) -> BlockSparseTensor:
    if not isinstance(a, BlockSparseTensor):
        a, b = b, a
    if isinstance(b, numbers.Number) or (type(b) is torch.Tensor and b.ndim == 0):
        return a.with_values(a._stored * b)
    _check_same_layout(a, b, "mul")
    return BlockSparseTensor._wrap(a._stored * b._stored, a)


BlockSparseTensor._functions = {
    masked_matmul: _masked_matmul,
    torch.add: _add,
    torch.matmul: _matmul,
    torch.mul: _mul,
    torch.nn.functional.softmax: _softmax,
    torch.softmax: _softmax,
    torch.transpose: _transpose,
    torch.Tensor.__add__: _add,
    torch.Tensor.__matmul__: _matmul,
    torch.Tensor.__mul__: _mul,
    torch.Tensor.__rmatmul__: lambda a, b: _matmul(b, a),
    torch.Tensor.__rmul__: _mul,
    torch.Tensor.add: _add,
    torch.Tensor.matmul: _matmul,
    torch.Tensor.mul: _mul,
    torch.Tensor.softmax: _softmax,
    torch.Tensor.to_dense: _to_dense,
    torch.Tensor.transpose: _transpose,
}

__all__ = ["BlockSparseTensor"]
