"""Gradients of what is dropped, and layouts of the packed matrix, by name."""

GRADIENT_SP24 = "24sparse"
GRADIENT_DENSE = "24dense"
GRADIENT_STE = "ste"
BACKEND_CUTLASS = "cutlass"
BACKEND_CUSPARSELT = "cusparselt"
BACKEND_DENSE = "dense"
GRADIENTS = (GRADIENT_SP24, GRADIENT_DENSE, GRADIENT_STE)
BACKENDS = (BACKEND_CUTLASS, BACKEND_CUSPARSELT)
