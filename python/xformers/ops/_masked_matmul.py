"""Scores with a mask, on dense tensors and on classes that bring their own."""

import torch
from torch.overrides import handle_torch_function, has_torch_function

from .._in_graph import allow_in_graph


@allow_in_graph
def by_class(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None) -> torch.Tensor:
    """What a tensor class makes of it; under torch.compile a step of the graph."""
    result: torch.Tensor = handle_torch_function(masked_matmul, (a, b, mask), a, b, mask)
    return result


def masked_matmul(a: torch.Tensor, b: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
    """`a @ b`; a boolean mask puts -inf where it is False, any other mask is added. Tensor classes with a
    `__torch_function__` of their own are asked first. Errors are those of PyTorch's product."""
    # The compiler answers the first question with no for classes that it takes apart.
    if has_torch_function((a, b, mask)) or hasattr(type(mask), "__tensor_flatten__"):
        return by_class(a, b, mask)
    scores = a @ b
    if mask is None:
        return scores
    if mask.dtype == torch.bool:
        return scores.masked_fill(~mask, -torch.inf)
    return scores + mask
