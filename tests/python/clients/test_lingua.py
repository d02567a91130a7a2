"""lingua, blt: training with packed documents, selective checkpointing by operator, masks read and shown."""

import torch
from client_check import assert_attends, randn
from torch.utils.checkpoint import CheckpointPolicy, checkpoint, create_selective_checkpoint_contexts

from xformers.ops import AttentionBias, fmha

POLICY_OPS = {
    torch.ops.xformers_flash.flash_fwd.default,
    torch.ops.xformers.efficient_attention_forward_cutlass.default,
}


def test_names():
    assert fmha.flash.FwOp.OPERATOR is not None and fmha.flash.FwOp.is_available()
    assert isinstance(fmha.attn_bias.LowerTriangularMask(), AttentionBias)


def test_training_on_packed_documents():
    """Block-causal over documents, every operator named in the policy kept by it."""
    lengths = [5, 3, 9]
    mask = fmha.attn_bias.BlockDiagonalCausalMask.from_seqlens(q_seqlen=lengths)
    q, k, v = (randn(1, 17, 4, 32, seed=seed, requires_grad=True) for seed in range(3))

    def policy(ctx, op, *args, **kwargs):
        return CheckpointPolicy.MUST_SAVE if op in POLICY_OPS else CheckpointPolicy.PREFER_RECOMPUTE

    def attend(q, k, v):
        return fmha.memory_efficient_attention(q, k, v, attn_bias=mask)

    plain = attend(q, k, v)
    kept = checkpoint(
        attend, q, k, v, use_reentrant=False, context_fn=lambda: create_selective_checkpoint_contexts(policy)
    )
    assert torch.equal(plain, kept)
    pairs = (torch.autograd.grad(out.square().sum(), (q, k, v)) for out in (plain, kept))
    assert all(torch.equal(a, b) for a, b in zip(*pairs, strict=True))
    assert_attends(plain.detach(), q, k, v, mask.materialize((17, 17)))


def test_masks_are_read():
    """blt reads the offsets and the materialised mask of what it built."""
    mask = fmha.attn_bias.BlockDiagonalMask.from_seqlens(q_seqlen=[2, 3], kv_seqlen=[4, 1])
    assert mask.q_seqinfo.seqstart.tolist() == [0, 2, 5] and mask.k_seqinfo.seqstart.tolist() == [0, 4, 5]
    assert (mask.materialize((5, 5), torch.bfloat16) == 0).sum() == 2 * 4 + 3 * 1


def test_causal_training():
    q, k, v = (randn(2, 12, 4, 32, dtype=torch.bfloat16, seed=seed, requires_grad=True) for seed in range(3))
    out = fmha.memory_efficient_attention(q, k, v, attn_bias=fmha.attn_bias.LowerTriangularMask())
    out.sum().backward()
    assert_attends(out.detach(), q, k, v, torch.full((12, 12), -torch.inf).triu(1))
