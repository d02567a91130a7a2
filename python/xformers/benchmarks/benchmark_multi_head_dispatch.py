"""MultiHeadDispatch beside torch.nn.MultiheadAttention: self-attention and cross-attention."""

import torch

from xformers.components import MultiHeadDispatch
from xformers.components.attention import ScaledDotProduct
from xformers.helpers.training import program

from ._sides import both_directions, parser_of, report_of

SHAPES = [(8, 384, 128), (8, 784, 512), (4, 1024, 768), (4, 2048, 1024), (2, 2048, 2048)]  # batch, seqlen, dim


def main(arguments: list[str] | None = None) -> None:
    parser = parser_of(__doc__)
    parser.add_argument("--causal", action="store_true", help="of self-attention alone")
    parser.add_argument("--largest", type=int, default=2048, help="width of the largest row")
    options = parser.parse_args(arguments)
    factory = {"device": options.device, "dtype": getattr(torch, options.dtype)}
    with report_of(options) as report:
        for batch, seqlen, dim in [(2, 9, 32)] if options.smoke else [s for s in SHAPES if s[2] <= options.largest]:
            heads = max(4, dim // 128)
            ours = MultiHeadDispatch(dim, heads, ScaledDotProduct(causal=options.causal)).to(**factory)
            theirs = torch.nn.MultiheadAttention(dim, heads, batch_first=True).to(**factory)
            mask = torch.nn.Transformer.generate_square_subsequent_mask(seqlen, **factory) if options.causal else None
            x, y = (torch.randn(batch, seqlen, dim, requires_grad=True, **factory) for _ in range(2))

            def eager(q: torch.Tensor, k: torch.Tensor | None = None, layer=theirs, mask=mask) -> torch.Tensor:  # type: ignore
                k = q if k is None else k
                return layer(q, k, k, need_weights=False, attn_mask=mask, is_causal=mask is not None)[0]

            def mine(q: torch.Tensor, k: torch.Tensor | None = None, layer=ours) -> torch.Tensor:  # type: ignore
                return layer(q) if k is None else layer(q, k, k)

            size = f"{batch} x {seqlen} x {dim}, {heads} heads"
            both_directions(report, f"self {size}", {"ours": mine, "eager": eager}, x)
            if not options.causal:
                both_directions(report, f"cross {size}", {"ours": mine, "eager": eager}, x, y)


if __name__ == "__main__":
    program(main)
