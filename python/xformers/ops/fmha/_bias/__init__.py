"""The bias classes, one idea per file; `xformers.ops.fmha.attn_bias` is their public address."""
