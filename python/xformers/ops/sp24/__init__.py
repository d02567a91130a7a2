"""2:4 sparsity: matrices of which every 4 x 4 tile keeps at most two values in a row and two in a column.

`sparsify24` makes a `Sparse24Tensor`, which products, `linear` and some pointwise functions take in place of a dense
matrix; `Linear24` and `MLP24` are layers on it. Of any size, on the CPU. docs/ops/sparse24.md says when it pays.
"""

from .constants import (
    BACKEND_CUSPARSELT,
    BACKEND_CUTLASS,
    BACKEND_DENSE,
    GRADIENT_DENSE,
    GRADIENT_SP24,
    GRADIENT_STE,
)
from .functions import sparsify24, sparsify24_activation, sparsify24_like, sparsify24_ste
from .layers import MLP24, Linear24
from .operators import Sp24Gemm as Sp24Gemm
from .operators import Sp24GemmCusplt as Sp24GemmCusplt
from .operators import SparsifyApplyDenseOutputOp as SparsifyApplyDenseOutputOp
from .operators import SparsifyApplyOp as SparsifyApplyOp
from .operators import SparsifyBothWaysOp as SparsifyBothWaysOp
from .operators import _cusplt_version as _cusplt_version
from .operators import _cusplt_version_str as _cusplt_version_str
from .operators import _get_cusparselt_lib as _get_cusparselt_lib
from .operators import _has_cusparseLt as _has_cusparseLt
from .tensor import (
    SPARSE24_DISPATCH_CUSPARSELT,
    SPARSE24_DISPATCH_CUTLASS,
    Sparse24Tensor,
    Sparse24TensorCuSparseLt,
    Sparse24TensorCutlass,
)

__all__ = [
    "BACKEND_CUSPARSELT",
    "BACKEND_CUTLASS",
    "BACKEND_DENSE",
    "GRADIENT_DENSE",
    "GRADIENT_SP24",
    "GRADIENT_STE",
    "MLP24",
    "SPARSE24_DISPATCH_CUSPARSELT",
    "SPARSE24_DISPATCH_CUTLASS",
    "Linear24",
    "Sparse24Tensor",
    "Sparse24TensorCuSparseLt",
    "Sparse24TensorCutlass",
    "sparsify24",
    "sparsify24_activation",
    "sparsify24_like",
    "sparsify24_ste",
]
