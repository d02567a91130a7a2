"""Collectives as functions with gradients, in adjoint pairs, and plain ones along dim 0."""

import torch
import torch.distributed as dist


def all_reduce(x: torch.Tensor, *, process_group: dist.ProcessGroup) -> None:
    """x becomes its sum over ranks, in place. Without gradients."""
    with torch.no_grad():
        x.copy_(torch.ops.xformers.sum_over_ranks(x.detach(), process_group.group_name))


def gather_along_first_dim_async(
    input_: torch.Tensor, *, process_group: dist.ProcessGroup
) -> tuple[torch.Tensor, dist.Work | None]:
    """[n, ...] -> [ranks * n, ...], which may be read after `work.wait()`. One rank: the input, and None."""
    if process_group.size() == 1:
        return input_, None
    output = input_.new_empty((process_group.size() * input_.shape[0], *input_.shape[1:]))
    return output, dist.all_gather_into_tensor(output, input_.contiguous(), group=process_group, async_op=True)


def reduce_scatter_along_first_dim_async(
    input_: torch.Tensor, *, process_group: dist.ProcessGroup
) -> tuple[torch.Tensor, dist.Work | None]:
    """[ranks * n, ...] -> [n, ...], which may be read after `work.wait()`. One rank: the input, and None.

    The sum is the backend's own, in the input's dtype: `reduce_scatter_along_first_dim` adds in fp32."""
    ranks = process_group.size()
    if ranks == 1:
        return input_, None
    _check_divides(input_, ranks)
    output = input_.new_empty((input_.shape[0] // ranks, *input_.shape[1:]))
    return output, dist.reduce_scatter_tensor(output, input_.contiguous(), group=process_group, async_op=True)


def gather_along_first_dim(input_: torch.Tensor, *, process_group: dist.ProcessGroup) -> torch.Tensor:
    """[n, ...] -> [ranks * n, ...], by rank. Its gradient is `reduce_scatter_along_first_dim`'s result. One rank: the
    input."""
    if process_group.size() == 1:
        return input_
    return torch.ops.xformers.gather_rows(input_, process_group.group_name)


def reduce_scatter_along_first_dim(input_: torch.Tensor, *, process_group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's rows of the sum over ranks, added in fp32: [ranks * n, ...] -> [n, ...]. One rank: the input."""
    if process_group.size() == 1:
        return input_
    _check_divides(input_, process_group.size())
    return torch.ops.xformers.sum_rows(input_, process_group.group_name)


def copy_to_model_parallel_region(x: torch.Tensor, process_group: dist.ProcessGroup) -> torch.Tensor:
    """x as the input of products that are spread over ranks: backward adds its gradients up over the ranks."""
    return torch.ops.xformers.copy_to_ranks(x, process_group.group_name)


def reduce_from_model_parallel_region(x: torch.Tensor, process_group: dist.ProcessGroup) -> torch.Tensor:
    """The sum over ranks of x, which stays as it is; the gradient passes through."""
    return torch.ops.xformers.sum_over_ranks(x, process_group.group_name)


def gather_from_sequence_parallel_region(x: torch.Tensor, process_group: dist.ProcessGroup) -> torch.Tensor:
    """[n, ...] -> [ranks * n, ...]; backward: `scatter_to_sequence_parallel_region`."""
    return torch.ops.xformers.gather_rows(x, process_group.group_name)


def scatter_to_sequence_parallel_region(x: torch.Tensor, process_group: dist.ProcessGroup) -> torch.Tensor:
    """This rank's rows of the sum over ranks (reduce-scatter); backward: `gather_from_sequence_parallel_region`."""
    _check_divides(x, process_group.size())
    return torch.ops.xformers.sum_rows(x, process_group.group_name)


def _check_divides(x: torch.Tensor, ranks: int) -> None:
    if x.shape[0] % ranks != 0:
        raise AssertionError(
            f"reduce_scatter: x.size(0) is {x.shape[0]}, expected a multiple of the number of ranks, {ranks}.  "
            "Fix: pad it."
        )


__all__ = [
    "all_reduce",
    "copy_to_model_parallel_region",
    "gather_along_first_dim",
    "gather_along_first_dim_async",
    "gather_from_sequence_parallel_region",
    "reduce_from_model_parallel_region",
    "reduce_scatter_along_first_dim",
    "reduce_scatter_along_first_dim_async",
    "scatter_to_sequence_parallel_region",
]
