"""Conversions between patterns: int32 offsets and indices, as the operators take them."""

import torch

from xformers import operators

Parts = tuple[torch.Tensor, torch.Tensor, torch.Tensor, torch.Tensor]


def _coo_to_csr(
    m: int, n: int, row_indices: torch.Tensor, column_indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """Offsets `[m + 1]` of rows that ascend, and the columns as they are."""
    rows = torch.arange(m + 1, dtype=row_indices.dtype, device=row_indices.device)
    return torch.searchsorted(row_indices, rows).to(row_indices.dtype), column_indices


def _csr_to_coo(
    m: int, n: int, row_offsets: torch.Tensor, column_indices: torch.Tensor
) -> tuple[torch.Tensor, torch.Tensor]:
    """The row of each value, and the columns as they are."""
    rows = torch.arange(m, dtype=row_offsets.dtype, device=row_offsets.device)
    return rows.repeat_interleave(row_offsets.diff().long(), output_size=len(column_indices)), column_indices


def _diffsort(a: torch.Tensor) -> torch.Tensor:
    """int32: rows by decreasing length, of the offsets `a`; rows of one length keep their order."""
    return a.diff().argsort(stable=True, descending=True).int()


def _get_transpose_info(
    m: int, n: int, row_indices: torch.Tensor, row_offsets: torch.Tensor, column_indices: torch.Tensor
) -> Parts:
    """The pattern by columns: (row_indices_t, row_offsets_t, column_indices_t, perm); its value i is value perm[i]."""
    offsets, columns, perm = operators.csr_transpose(row_offsets, column_indices, n)
    return _diffsort(offsets), offsets, columns, perm


def _transpose_with_info(values: torch.Tensor, info: Parts) -> Parts:
    """(row_indices_t, values_t, row_offsets_t, column_indices_t) of values `[B, nnz]`."""
    row_indices, row_offsets, column_indices, perm = info
    return row_indices, values.index_select(1, perm), row_offsets, column_indices


def _transpose(
    m: int,
    n: int,
    row_indices: torch.Tensor,
    values: torch.Tensor,
    row_offsets: torch.Tensor,
    column_indices: torch.Tensor,
) -> Parts:
    """The same, of a matrix `[m, n]` whose transposed pattern is not known."""
    return _transpose_with_info(values, _get_transpose_info(m, n, row_indices, row_offsets, column_indices))


def _dense3d_to_sparse(matrix: torch.Tensor, device: torch.device | str) -> Parts:
    """(values `[B, nnz]`, row_indices, row_offsets, column_indices) of `[B, m, n]` with one pattern, on the device."""
    values, row_offsets, column_indices = operators.csr_from_dense(matrix)
    parts = (values, _diffsort(row_offsets), row_offsets, column_indices)
    values, row_indices, row_offsets, column_indices = (part.to(device) for part in parts)
    return values, row_indices, row_offsets, column_indices


def _dense_to_sparse(matrix: torch.Tensor, device: torch.device | str) -> Parts:
    """(values fp32 `[nnz]`, row_indices, row_offsets, column_indices) of `[m, n]`, on the device."""
    values, *pattern = _dense3d_to_sparse(matrix[None], device)
    return values[0].float(), pattern[0], pattern[1], pattern[2]


def _nonzero_mask_to_sparse_csr_indices(
    mask: torch.Tensor, device: torch.device | str
) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """(row_indices, row_offsets, column_indices) of the non-zeros of `[m, n]`, on the device."""
    _, row_indices, row_offsets, column_indices = _dense3d_to_sparse(mask[None], device)
    return row_indices, row_offsets, column_indices


def _round_nnz(mask: torch.Tensor, divisible_by: int = 4) -> torch.Tensor:
    """mask without its last non-zeros in row-major order, so that their number is a multiple. No operator asks for
    it."""
    places = mask.reshape(-1).nonzero()[:, 0]
    kept = len(places) // divisible_by * divisible_by
    rounded = mask.flatten().clone()
    rounded[places[kept:]] = 0
    return rounded.view(mask.shape)
