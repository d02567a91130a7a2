"""Sparse tensors whose products and softmax are the library's operators."""

from .csr_tensor import SparseCSRTensor

__all__ = ["SparseCSRTensor"]
