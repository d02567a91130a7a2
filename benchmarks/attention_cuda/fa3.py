"""FlashAttention-3 as a side, where FA3_LIB names its compiled extension module (sm_90a, flash_attn_3::fwd and bwd)."""

import functools
import importlib.machinery
import importlib.util
import os

import torch


def is_given() -> bool:
    return bool(os.environ.get("FA3_LIB"))


@functools.cache
def operators():
    # The library registers its operators when Python imports it as the module it was built as.
    loader = importlib.machinery.ExtensionFileLoader("_C", os.environ["FA3_LIB"])
    loader.exec_module(importlib.util.module_from_spec(importlib.util.spec_from_loader("_C", loader)))
    return torch.ops.flash_attn_3


def takes(problem) -> bool:
    return problem.dtype.itemsize == 2 and not problem.bias and not problem.p


def side(problem, inputs):
    """(forward, backward of one kept call), as the other sides have it."""
    q, k, v, dout = inputs.q, inputs.k, inputs.v, inputs.dout
    options = {"softmax_scale": problem.d**-0.5, "is_causal": problem.causal and not problem.window}
    if problem.window:
        options.update(window_size_left=problem.window - 1, window_size_right=0)

    def forward():
        return operators().fwd(q, k, v, num_splits=1, **options)

    def gradients():
        out, lse, *_ = forward()
        dq, dk, dv = torch.empty_like(q), torch.empty_like(k), torch.empty_like(v)
        more = {"deterministic": True} if problem.deterministic else {}
        return lambda: operators().bwd(dout, q, k, v, out, lse, dq, dk, dv, **options, **more)

    return forward, gradients
