"""The operators."""

from . import _flops as _flops  # registers itself with PyTorch's counter
from . import fmha
from ._masked_matmul import masked_matmul
from .context_parallel import (
    ContextParallelPlan,
    context_parallel_attention,
    context_parallel_attention_with_lse,
    plan_context_parallel,
)
from .fmha import (
    AttentionOp,
    AttentionOpBase,
    MemoryEfficientAttentionCkOp,
    MemoryEfficientAttentionCutlassFwdFlashBwOp,
    MemoryEfficientAttentionCutlassOp,
    MemoryEfficientAttentionFlashAttentionOp,
    MemoryEfficientAttentionSplitKCkOp,
    memory_efficient_attention,
    memory_efficient_attention_backward,
    memory_efficient_attention_forward,
    memory_efficient_attention_forward_requires_grad,
    memory_efficient_attention_partial,
    merge_attentions,
)
from .fmha.attn_bias import AttentionBias, BlockSparseMask, LowerTriangularMask
from .indexing import index_select_cat, scaled_index_add
from .ipc import init_ipc
from .linear_attention import linear_attention
from .modpar_layers import ColumnParallelLinear, RowParallelLinear
from .rmsnorm import RMSNorm, rms_norm, rms_norm_add
from .rope_padded import rope_padded
from .seqpar import sequence_parallel_leading_matmul, sequence_parallel_trailing_matmul
from .sequence_parallel_fused_ops import (
    fused_allgather_and_anything,
    fused_allgather_and_linear,
    fused_anything_and_reducescatter,
    fused_linear_and_reducescatter,
)
from .sp24 import Sparse24Tensor, sparsify24, sparsify24_like
from .swiglu_op import (
    SwiGLU,
    SwiGLUEagerOp,
    SwiGLUFusedOp,
    SwiGLUOp,
    SwiGLUOpDispatch,
    SwiGLUPackedFusedOp,
    swiglu,
    swiglu_packed,
)
from .tiled_matmul import tiled_matmul
from .unbind import get_stack_strides, stack_or_none, unbind

AttentionMask = AttentionBias  # the name of old

__all__ = [
    "AttentionBias",
    "AttentionMask",
    "AttentionOp",
    "AttentionOpBase",
    "BlockSparseMask",
    "ColumnParallelLinear",
    "ContextParallelPlan",
    "LowerTriangularMask",
    "MemoryEfficientAttentionCkOp",
    "MemoryEfficientAttentionCutlassFwdFlashBwOp",
    "MemoryEfficientAttentionCutlassOp",
    "MemoryEfficientAttentionFlashAttentionOp",
    "MemoryEfficientAttentionSplitKCkOp",
    "RMSNorm",
    "RowParallelLinear",
    "Sparse24Tensor",
    "SwiGLU",
    "SwiGLUEagerOp",
    "SwiGLUFusedOp",
    "SwiGLUOp",
    "SwiGLUOpDispatch",
    "SwiGLUPackedFusedOp",
    "context_parallel_attention",
    "context_parallel_attention_with_lse",
    "fmha",
    "fused_allgather_and_anything",
    "fused_allgather_and_linear",
    "fused_anything_and_reducescatter",
    "fused_linear_and_reducescatter",
    "get_stack_strides",
    "index_select_cat",
    "init_ipc",
    "linear_attention",
    "masked_matmul",
    "memory_efficient_attention",
    "memory_efficient_attention_backward",
    "memory_efficient_attention_forward",
    "memory_efficient_attention_forward_requires_grad",
    "memory_efficient_attention_partial",
    "merge_attentions",
    "plan_context_parallel",
    "rms_norm",
    "rms_norm_add",
    "rope_padded",
    "scaled_index_add",
    "sequence_parallel_leading_matmul",
    "sequence_parallel_trailing_matmul",
    "sparsify24",
    "sparsify24_like",
    "stack_or_none",
    "swiglu",
    "swiglu_packed",
    "tiled_matmul",
    "unbind",
]
