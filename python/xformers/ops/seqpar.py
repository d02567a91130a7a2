"""Products with gradients over shards of a sequence: all-gather and product, product and reduce-scatter."""

from collections.abc import Sequence

import torch
import torch.distributed as dist


def sequence_parallel_leading_matmul(
    x: torch.Tensor, ws: Sequence[torch.Tensor], *, fuse: bool, process_group: dist.ProcessGroup
) -> list[torch.Tensor]:
    """`all_gather(x) @ w` for each w, with gradients.

    x: this rank's shard of dim 0, [S / ranks, ..., K]. ws: this rank's columns, [K, N_i] each. Results: [S, ..., N_i].
    fuse: transfers may hide behind products split by rank, where that is predicted to be faster; the results are the
        same. In backward x is gathered again (it isn't kept), beside the product for its gradient.
    AssertionError where shapes, dtypes or the group don't fit; where ranks call differently, on every rank.
    """
    try:
        return torch.ops.xformers.sequence_parallel_leading_matmul(x, list(ws), fuse, process_group.group_name)
    except ValueError as error:
        raise AssertionError(str(error)) from None


def sequence_parallel_trailing_matmul(
    x: torch.Tensor, w: torch.Tensor, *, fuse: bool, process_group: dist.ProcessGroup
) -> torch.Tensor:
    """This rank's rows of the sum over ranks of `x @ w`, with gradients.

    x: [S, ..., K], w: [K, N], this rank's part of K. Result: [S / ranks, ..., N]; S is a multiple of the number of
    ranks. The sum is made in fp32 (fp64 for fp64), in the order of ranks. AssertionError as above.
    """
    try:
        return torch.ops.xformers.sequence_parallel_trailing_matmul(x, w, fuse, process_group.group_name)
    except ValueError as error:
        raise AssertionError(str(error)) from None


__all__ = ["sequence_parallel_leading_matmul", "sequence_parallel_trailing_matmul"]
