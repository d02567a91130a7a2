"""Sparse tensors whose products and softmax are the library's operators."""

from . import blocksparse
from .blocksparse_tensor import BlockSparseTensor
from .csr_tensor import SparseCSRTensor

__all__ = ["BlockSparseTensor", "SparseCSRTensor", "blocksparse"]
