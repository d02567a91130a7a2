"""Trains on sentences of different lengths without padding: they lie side by side, and a mask keeps them apart."""

import torch
from xformers.ops.fmha.attn_bias import BlockDiagonalMask

from xformers.ops import fmha, memory_efficient_attention

torch.manual_seed(0)
VOCABULARY, DIM, HEADS, MARK = 50, 64, 4, 0


class Tagger(torch.nn.Module):
    """Tells of every token whether the mark stands at or before it in its own sentence: only attention can know."""

    def __init__(self):
        super().__init__()
        self.embedding = torch.nn.Embedding(VOCABULARY, DIM)
        self.qkv = torch.nn.Linear(DIM, 3 * DIM)
        self.head = torch.nn.Sequential(torch.nn.Linear(2 * DIM, DIM), torch.nn.ReLU(), torch.nn.Linear(DIM, 2))

    def forward(self, tokens: torch.Tensor, mask: fmha.AttentionBias) -> torch.Tensor:
        x = self.embedding(tokens)  # [1, all tokens, dim]
        q, k, v = self.qkv(x).unflatten(-1, (3, HEADS, DIM // HEADS)).unbind(2)
        seen = memory_efficient_attention(q, k, v, attn_bias=mask)  # earlier tokens of the same sentence
        return self.head(torch.cat([x, seen.flatten(-2)], -1))


def sentences(count: int) -> tuple[torch.Tensor, torch.Tensor, list[int]]:
    """Tokens [1, total], whether the mark has come [1, total], and the lengths."""
    lengths = torch.randint(5, 60, (count,)).tolist()
    tokens = [torch.randint(VOCABULARY, (length,)) for length in lengths]
    marked = [(one == MARK).cumsum(0) > 0 for one in tokens]
    return torch.cat(tokens)[None], torch.cat(marked)[None].long(), lengths


model = Tagger()
optimizer = torch.optim.Adam(model.parameters(), 3e-3)
for step in range(301):
    tokens, target, lengths = sentences(16)
    mask = BlockDiagonalMask.from_seqlens(lengths).make_causal()
    loss = torch.nn.functional.cross_entropy(model(tokens, mask).flatten(0, 1), target.flatten())
    optimizer.zero_grad()
    loss.backward()
    optimizer.step()
    if step % 100 == 0:
        print(f"step {step}: {len(lengths)} sentences, {tokens.numel()} tokens, loss {loss.item():.3f}")
