"""Sequences without padding (0.0.9): lookup tables, scores and attention against the same on each sequence alone."""

import pytest
import torch
from devices import on_each_device  # noqa: F401
from xformers.experimental.ragged_inference.garbage_pad_ragged_acts import RaggedActivations
from xformers.experimental.ragged_inference.seq_kv_cache import (
    SingleSeqKVCache,
    _create_indices,
    calculate_scores_via_qk_dotprod,
    extend_kv_caches,
    garbage_pad_keys,
    garbage_pad_seq_kv_cache,
    scores_via_qk_dotprod,
)
from xformers.experimental.ragged_inference.triton_v2_matmul import matmul
from xformers.experimental.ragged_inference.triton_v2_qk_dotprod import qk_dotprod
from xformers.experimental.ragged_inference.triton_v2_ragged_qk_dotprod import (
    RaggedQkPidLookupTable,
    ragged_qk_dotprod,
    ragged_single_seq_qk_dotprod,
)

import xformers  # noqa: F401

NQ, NK, DIM = [3, 1, 20], [5, 40, 3], 16


def ragged(lengths, seed):
    torch.manual_seed(seed)
    return RaggedActivations.from_list([torch.randn(n, DIM) for n in lengths])


def test_padding_fills_every_token():
    x = ragged(NQ, 0)
    padded = x.to_garbage_padded()
    assert padded.shape == (x.n_seqs, x.max_n_ctx_per_seq, DIM) == (3, 20, DIM)
    assert torch.equal(x.triton_to_garbage_padded(), padded)
    for row, sequence in zip(padded, x.iter_full_tensors(), strict=True):
        assert torch.equal(row[: len(sequence)], sequence)
    indices = _create_indices(NQ)
    assert torch.equal(x.raw_tensor[indices.to(x.device)][0, :3], padded[0, :3])


def test_scores():
    query, key = ragged(NQ, 0), ragged(NK, 1)
    table = RaggedQkPidLookupTable.from_query_and_key_tokens_per_seq(NQ, NK)
    for scores in (scores_via_qk_dotprod(query, key), ragged_qk_dotprod(query, key, table)):
        assert scores.shape == (3, max(NQ), max(NK))
        for i, (q, k) in enumerate(zip(query.iter_full_tensors(), key.iter_full_tensors(), strict=True)):
            assert torch.allclose(scores[i, : len(q), : len(k)], q @ k.T, atol=1e-5)
    q, k = query.raw_tensor, key.raw_tensor
    table = RaggedQkPidLookupTable.from_single_seq(len(q), len(k))
    assert torch.allclose(ragged_single_seq_qk_dotprod(q, k, table), q @ k.T, atol=1e-5)
    assert torch.allclose(qk_dotprod(q, k), matmul(q, k.T), atol=1e-5)


def test_lookup_table():
    table = RaggedQkPidLookupTable.from_query_and_key_tokens_per_seq((3, 2, 2), (5, 2, 3), 2, 2)
    assert table.pid_to_in_q_token_offset.tolist() == [0, 0, 0, 2, 2, 2, 3, 5, 5]
    assert table.pid_to_in_k_token_offset.tolist() == [0, 2, 4, 0, 2, 4, 5, 7, 9]
    assert table.pid_to_out_q_block.tolist() == [0, 0, 0, 1, 1, 1, 0, 0, 0]
    assert table.pid_to_out_k_block.tolist() == [0, 1, 2, 0, 1, 2, 0, 0, 1]
    assert table.pid_to_out_seq_idx.tolist() == [0] * 6 + [1, 2, 2] and table.n_pids_total == 9
    assert RaggedQkPidLookupTable.from_single_seq(17, 129).n_pids_total == 4


def test_caches():
    caches = [SingleSeqKVCache(torch.randn(n, DIM), torch.randn(n, DIM)) for n in NK]
    keys, values = ragged(NQ, 2), ragged(NQ, 3)
    extended = extend_kv_caches(caches, keys, values)
    assert [cache.n_ctx for cache in extended] == [a + b for a, b in zip(NQ, NK, strict=True)]
    assert torch.equal(extended[1].values[40:], values.raw_tensor[3:4]) and [c.n_ctx for c in caches] == NK
    padded_keys, padded_values = garbage_pad_seq_kv_cache(extended)
    assert torch.equal(padded_keys, garbage_pad_keys(extended)) and padded_values.shape == (3, 41, DIM)
    queries = ragged(NQ, 4)
    scores = calculate_scores_via_qk_dotprod(extended, queries)
    assert torch.allclose(scores[2, :20, :23], queries.raw_tensor[4:] @ extended[2].keys.T, atol=1e-5)


@pytest.mark.parametrize("causal", [False, True])
def test_attention(causal):
    lengths = [3, 7, 20] if causal else NK
    shapes = [(sum(n), 2, DIM) for n in ([3, 1, 20], lengths, lengths)]
    q, k, v = (torch.randn(shape, dtype=torch.float64, requires_grad=True) for shape in shapes)
    out = torch.ops.xformers.ragged_attention(q, k, v, [3, 1, 20], lengths, causal)
    expected = []
    for a, b, c in zip(q.split([3, 1, 20]), k.split(lengths), v.split(lengths), strict=True):
        scores = torch.einsum("qhd,khd->hqk", a, b) / DIM**0.5
        if causal:
            scores = scores.masked_fill(torch.ones(scores.shape[1:]).triu(len(b) - len(a) + 1).bool(), -torch.inf)
        expected.append(torch.einsum("hqk,khd->qhd", scores.softmax(-1), c))
    expected = torch.cat(expected)
    assert torch.allclose(out, expected)
    gradients = (torch.autograd.grad(y.square().sum(), (q, k, v)) for y in (out, expected))
    assert all(torch.allclose(a, b) for a, b in zip(*gradients, strict=True))


def test_lengths_that_do_not_fit():
    x = torch.randn(5, DIM)
    with pytest.raises(ValueError, match="x.tokens is 5, expected 6"):
        RaggedActivations(x, [3, 3]).to_garbage_padded()
    with pytest.raises(ValueError, match="query.tokens is 5, expected 4"):
        scores_via_qk_dotprod(RaggedActivations(x, [4]), RaggedActivations(x, [5]))
    with pytest.raises(ValueError, match="block is 0 x 2"):
        torch.ops.xformers.ragged_block_table([1], [1], 0, 2)
    with pytest.raises(ValueError, match="without sequences"):
        torch.ops.xformers.ragged_to_padded(x, [])
