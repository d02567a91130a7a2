"""Gradients of what is dropped, and layouts of the packed matrix, by name."""

# The gradient of `sparsify24`: packed, where the output kept something; these values in a dense matrix; or, "ste", all
# of it, straight through the choice.
GRADIENT_SP24 = "24sparse"
GRADIENT_DENSE = "24dense"
GRADIENT_STE = "ste"
# Layouts of the packed matrix, which `backend` names; "dense" stays unpacked.
BACKEND_CUTLASS = "cutlass"
BACKEND_CUSPARSELT = "cusparselt"
BACKEND_DENSE = "dense"
GRADIENTS = (GRADIENT_SP24, GRADIENT_DENSE, GRADIENT_STE)
BACKENDS = (BACKEND_CUTLASS, BACKEND_CUSPARSELT)
