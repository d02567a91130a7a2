"""Gathering and adding rows: in one pass, differentiable, on every device."""

from collections.abc import Sequence

import torch

from .common import BaseOperator, get_xformers_operator, register_operator


@register_operator
class ScaledIndexAddFw(BaseOperator):
    OPERATOR = get_xformers_operator("scaled_index_add_")
    OPERATOR_CATEGORY = "indexing"
    NAME = "scaled_index_addF"


@register_operator
class ScaledIndexAddBw(BaseOperator):
    OPERATOR = get_xformers_operator("scaled_index_add_backward")
    OPERATOR_CATEGORY = "indexing"
    NAME = "scaled_index_addB"


@register_operator
class IndexSelect(BaseOperator):
    OPERATOR = get_xformers_operator("index_select_cat")
    OPERATOR_CATEGORY = "indexing"
    NAME = "index_select"


def index_select_cat(sources: Sequence[torch.Tensor], indices: Sequence[torch.Tensor]) -> torch.Tensor:
    """The rows `indices[i]` of each `sources[i]`, flattened and concatenated into one dimension.

    sources[i]: [rows_i, width_i], all of one dtype; indices[i]: int64 [n_i]. Where an index repeats a row, its
    gradients add up. ValueError where lengths, shapes, dtypes or devices don't fit, nothing is given or, on the CPU,
    a row is none of its source (on a GPU, with XFORMERS_CHECK_INDICES=1, IndexError). In plain PyTorch:
    `torch.cat([s[i].flatten() for s, i in zip(sources, indices)])`.
    """
    if not sources:  # no tensor from which a device's operator could be found
        raise ValueError("index_select_cat: sources is empty, expected at least one tensor.  Fix: leave the call out.")
    return torch.ops.xformers.index_select_cat(sources, indices)


def scaled_index_add(
    input: torch.Tensor,  # noqa: A002  (the public name)
    index: torch.Tensor,
    source: torch.Tensor,
    scaling: torch.Tensor | None = None,
    alpha: float = 1.0,
) -> torch.Tensor:
    """In place: `input[index[i]] += alpha * scaling * source[i]`; returns input.

    input: [rows, middle, width]; index: int64 [n]; source: [n, middle, width]; scaling: [width]. Computed in fp32 (fp64
    for fp64) and rounded once; repeated indices add up. Differentiable in input, source and scaling. ValueError where
    shapes, dtypes, devices or rows don't fit, as for `index_select_cat`. Stochastic depth over whole samples ("DINOv2",
    Oquab et al., arXiv:2304.07193, section 5) is `index_select_cat`, the layer, and this.
    """
    torch.ops.xformers.scaled_index_add_(input, index, source, scaling, alpha)
    return input


__all__ = ["index_select_cat", "scaled_index_add"]
