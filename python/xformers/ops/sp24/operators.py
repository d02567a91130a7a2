"""The operators by name, and whether the vendor's library is there."""

import ctypes.util
import os

import torch

from ..common import BaseOperator, get_operator, get_xformers_operator, register_operator


def _get_cusparselt_lib() -> str | None:
    """Path or name of cuSPARSELt's shared library; None where there is none."""
    for folder in getattr(torch, "__path__", []):
        library = os.path.join(folder, "lib", "libcusparseLt.so.0")
        if os.path.exists(library):
            return library
    return ctypes.util.find_library("cusparseLt")


def _find_version() -> tuple[int, int, int]:
    library = _get_cusparselt_lib()
    if library is None or not torch.backends.cusparselt.is_available():
        return (0, 0, 0)
    number = torch.backends.cusparselt.version() or 0
    return (number // 10000 if number >= 10000 else number // 1000, number // 100 % 10, number % 100)


_cusplt_version = _find_version()
_cusplt_version_str = ".".join(map(str, _cusplt_version))


def _has_cusparseLt() -> bool:
    """Whether products may go to the vendor's library. Ours serve both backends on the CPU, without it."""
    return _cusplt_version != (0, 0, 0) and torch.cuda.is_available()


@register_operator
class SparsifyBothWaysOp(BaseOperator):
    OPERATOR = get_xformers_operator("sparse24_sparsify_both_ways")
    OPERATOR_CATEGORY = "sp24"
    NAME = "sparse24_sparsify_both_ways"


@register_operator
class SparsifyApplyOp(BaseOperator):
    OPERATOR = get_xformers_operator("sparse24_apply")
    OPERATOR_CATEGORY = "sp24"
    NAME = "sparse24_apply"


@register_operator
class SparsifyApplyDenseOutputOp(BaseOperator):
    OPERATOR = get_xformers_operator("sparse24_apply_dense_output")
    OPERATOR_CATEGORY = "sp24"
    NAME = "sparse24_apply_dense_output"


@register_operator
class Sp24Gemm(BaseOperator):
    OPERATOR = get_xformers_operator("_sparse24_gemm")
    OPERATOR_CATEGORY = "sp24"
    NAME = "_sparse24_gemm"


@register_operator
class Sp24GemmCusplt(BaseOperator):
    OPERATOR = get_operator("aten", "_cslt_sparse_mm")
    OPERATOR_CATEGORY = "sp24"
    NAME = f"_cslt_sparse_mm@{_cusplt_version_str}"
