"""The contracts of the named operators, as the library states them."""

from __future__ import annotations

import json
from typing import TYPE_CHECKING, Any

import torch

from . import attn_bias
from ._lower import bias_name, dense_of, query_lengths

if TYPE_CHECKING:
    from .common import AttentionOpBase, Inputs


def _dtype(name: str) -> torch.dtype:
    return getattr(torch, name)


def _bias_type(name: str) -> type:
    return {"None": type(None), "Tensor": torch.Tensor}.get(name) or getattr(attn_bias, name)


_CONVERT = {
    "SUPPORTED_DEVICES": set,
    "CUDA_MINIMUM_COMPUTE_CAPABILITY": tuple,
    "SUPPORTED_DTYPES": lambda names: {_dtype(name) for name in names},
    "SUPPORTED_ATTN_BIAS_TYPES": lambda names: tuple(_bias_type(name) for name in names),
    "ERROR_ATOL": lambda by_name: {_dtype(name): value for name, value in by_name.items()},
    "ERROR_RTOL": lambda by_name: {_dtype(name): value for name, value in by_name.items()},
}
_PRIVATE = {"KEY": "_KEY", "LSE_FLOAT64": "_LSE_FLOAT64"}
_NOT_ATTRIBUTES = {"MODULE", "BACKWARD", "LSE_PAD_TO", "AVAILABLE", "NOT_BUILT"}


def load(key: str) -> dict[str, Any]:
    """The contract as class attributes."""
    contract = json.loads(torch.ops.xformers.attention_contract(key))
    attributes = {
        _PRIVATE.get(name, name): _CONVERT.get(name, lambda x: x)(value)
        for name, value in contract.items()
        if name not in _NOT_ATTRIBUTES
    }
    padded = "cutlass" if contract["LSE_PAD_TO"] > 1 else "padded"
    attributes["_LSE_FORMAT"] = "packed" if contract["VARLEN_LSE_PACKED"] else padded
    return attributes


def arguments(inp: Inputs, op: type[AttentionOpBase] | None = None) -> tuple[tuple[torch.Tensor, ...], dict[str, Any]]:
    """(query, key, value) in at least 4 dimensions, and the rest of what a contract is asked about."""
    query, key, value = inp.query, inp.key, inp.value
    bias, dense = inp.attn_bias, dense_of(inp.attn_bias)
    if query.ndim == 3:
        query, key, value = query.unsqueeze(2), key.unsqueeze(2), value.unsqueeze(2)
        dense = dense.unsqueeze(1) if dense is not None and dense.ndim else dense
    options: dict[str, Any] = {
        "bias_type": bias_name(bias),
        "dense_bias": dense,
        "p": inp.p,
        "scale_given": inp.scale is not None,
        "output_dtype": inp.output_dtype,
        "is_partial": inp.is_partial,
        "bias_requires_grad": dense is not None and dense.requires_grad,
        "fp8": bool(inp._quantization()),
    }
    if isinstance(bias, attn_bias.VARLEN_BIASES):
        options["seqlens_q"] = query_lengths(bias)
        options["seqlens_k"] = bias.k_seqinfo._lengths_py()
        options["page_size"] = getattr(bias, "page_size", 0)
    if query.is_cuda:
        options["cuda_capability"] = list(torch.cuda.get_device_capability(query.device))
    for name, attribute in (("num_groups", "NUM_GROUPS"), ("split_k", "SPLIT_K"), ("block_n", "BLOCK_N")):
        if getattr(op, attribute, None):
            options[name] = getattr(op, attribute)
    if getattr(op, "AUTOTUNE", False):
        options["autotune"] = True
    return (query, key, value), options
