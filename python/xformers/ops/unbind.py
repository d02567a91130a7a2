"""Taking a tensor such as [batch, seqlen, 3, heads, head_dim] apart without a copy, in backward too."""

from collections.abc import Sequence

import torch


def unbind(x: torch.Tensor, dim: int) -> tuple[torch.Tensor, ...]:
    """`torch.unbind`, whose backward copies nothing where the gradients already lie in memory as a stack. IndexError
    where x has no dimension `dim`."""
    return tuple(torch.ops.xformers.unbind(x, dim))


def stack_or_none(tensors: Sequence[torch.Tensor], dim: int) -> torch.Tensor | None:
    """`torch.stack` as a view, or None where it would have to copy. Differentiable."""
    return torch.ops.xformers.stack_or_none(list(tensors), dim)


def get_stack_strides(tensors: Sequence[torch.Tensor], dim: int) -> tuple[int, ...] | None:
    """Strides of `torch.stack(tensors, dim)` where the tensors already lie in memory like that, else None."""
    return tuple(torch.ops.xformers.get_stack_strides(list(tensors), dim)) or None
