"""Block-sparse products and softmax as objects that hold a layout: `matmul(layout, block, mode, device)(a, b)`."""

from typing import Any

import torch

from xformers import operators

_BLOCKS = (16, 32, 64, 128)


class _OnLayout:
    """A layout `[H, h, w]` (bool or 0/1 integers) and its tables, made once, on a device."""

    def __init__(self, name: str, layout: torch.Tensor, block: int, device: torch.device | str):
        if block not in _BLOCKS:
            raise ValueError(
                f"{name}: block is {block}, expected one of {list(_BLOCKS)}.  Fix: use one of these sizes."
            )
        if layout.ndim != 3:
            raise ValueError(f"{name}: layout is {list(layout.shape)}, expected [H, h, w].  Fix: unsqueeze the heads.")
        self.layout, self.block, self.device = layout, block, torch.device(device)
        tables = operators.blocksparse_tables(layout.to(self.device))
        self._rows, self._by_columns = tables[:2], tables[2:]


class matmul(_OnLayout):  # noqa: N801  (the public name)
    """A product one of whose matrices is sparse: stored as blocks `[Z, nnz, block, block]`, in the order of
    `layout.nonzero()`; the others are dense, `[Z, H, rows, columns]`, of any strides.

    Arguments:
        layout: `[H, h, w]` of the sparse matrix as it lies in memory.
        block: 16, 32, 64 or 128 (ValueError).
        mode: "sdd": sparse = a @ b at the layout's blocks; "dsd": dense = sparse a @ b; "dds": dense = a @ sparse b.
            NotImplementedError for others.
        trans_a, trans_b: that operand is used transposed; trans_c: the result comes transposed.

    Called with (a, b), optionally with `out=`, which is written and returned. Differentiable in both. ValueError where
    sizes do not fit.
    """

    def __init__(
        self,
        layout: torch.Tensor,
        block: int,
        mode: str,
        device: torch.device | str,
        trans_a: bool = False,
        trans_b: bool = False,
        trans_c: bool = False,
    ):
        if mode not in ("sdd", "dsd", "dds"):
            raise NotImplementedError(
                f"blocksparse.matmul: mode is {mode!r}, expected 'sdd', 'dsd' or 'dds'.  Fix: use one."
            )
        super().__init__("blocksparse.matmul", layout, block, device)
        self.mode, self.trans_a, self.trans_b, self.trans_c = mode, trans_a, trans_b, trans_c

    def __call__(self, a: torch.Tensor, b: torch.Tensor, out: torch.Tensor | None = None) -> torch.Tensor:
        result = getattr(self, f"_{self.mode}")(a, b)
        return result if out is None else out.copy_(result)

    def _sdd(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        a, b = a.mT if self.trans_a else a, b.mT if self.trans_b else b
        if self.trans_c:
            a, b = b.mT, a.mT
        return operators.blocksparse_sdd(a, b, *self._rows, self.block, *self._by_columns)

    def _dsd(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:
        result = self._sparse_times(a, b.mT if self.trans_b else b, self.trans_a)
        return result.mT if self.trans_c else result

    def _dds(self, a: torch.Tensor, b: torch.Tensor) -> torch.Tensor:  # the transpose of b^T a^T
        result = self._sparse_times(b, a if self.trans_a else a.mT, not self.trans_b)
        return result if self.trans_c else result.mT

    def _sparse_times(self, values: torch.Tensor, dense: torch.Tensor, transposed: bool) -> torch.Tensor:
        rows = self.layout.shape[2 if transposed else 1] * self.block
        return operators.blocksparse_dsd(values, dense, *self._rows, rows, *self._by_columns, transposed=transposed)


class softmax(_OnLayout):  # noqa: N801  (the public name)
    """softmax(scale * a + masks) per row over the stored blocks of `[Z, nnz, block, block]`; a new tensor.

    Rows that see nothing are zeros in their stored blocks. is_dense: the result is dense, `[Z, H, h * block, w *
    block]`, zeros elsewhere. Layout, block and device as of `matmul`.
    """

    def __init__(self, layout: torch.Tensor, block: int, device: torch.device | str, is_dense: bool = False):
        super().__init__("blocksparse.softmax", layout, block, device)
        self.is_dense = is_dense

    def __call__(
        self,
        a: torch.Tensor,
        *,
        scale: float = 1.0,
        rel_logits: torch.Tensor | None = None,
        is_causal: bool = False,
        attn_mask: torch.Tensor | None = None,
        key_padding_mask: torch.Tensor | None = None,
    ) -> torch.Tensor:
        """rel_logits is added, and attn_mask (bool: True is seen; or added) too: each broadcasts to `[Z, H, rows,
        columns]`. key_padding_mask: `[Z, columns]`, likewise. is_causal hides what lies right of the diagonal.
        Differentiable in a, rel_logits and masks that are added."""
        heads, width = self.layout.shape[0], self.layout.shape[2] * self.block
        masks: Any = (rel_logits, attn_mask, key_padding_mask)
        weights = operators.blocksparse_softmax(a, *self._rows, heads, width, scale, is_causal, *masks)
        return operators.blocksparse_to_dense(weights, *self._rows, heads, width) if self.is_dense else weights


__all__ = ["matmul", "softmax"]
