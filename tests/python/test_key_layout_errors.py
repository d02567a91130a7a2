"""What the operators refuse of packed, paged and quantised keys: changes of a good call, and what is said to each."""

import pytest
import torch
from attention_inputs import qkv

forward = torch.ops.xformers.attention_forward
check_inputs = torch.ops.xformers.attention_check_inputs


def int32(*values):
    return torch.tensor(values, dtype=torch.int32)


def packed():
    query, key, value = qkv(batch=1, nq=5, nk=8, requires_grad=False)
    return dict(query=query, key=key, value=value, cu_seqlens_q=int32(0, 2, 5), cu_seqlens_k=int32(0, 3, 8))


def padded():
    return dict(packed(), cu_seqlens_k=int32(0, 4, 8), seqused_k=int32(3, 2))


def paged():
    call = dict(packed(), seqused_k=int32(3, 4), page_table=int32([3, 0], [2, 1]), page_size=2)
    del call["cu_seqlens_k"]
    return call


def int4():
    query = torch.zeros(1, 5, 3, 16)
    key = torch.zeros(1, 8, 3, 4, dtype=torch.int32)
    return dict(query=query, key=key, value=key)


def fp8():
    call, coefficients = int4(), torch.zeros(1, 8, 3, dtype=torch.int32)
    return dict(call, k_scale_shift=coefficients, v_scale_shift=coefficients)


BASES = dict(packed=packed, padded=padded, paged=paged, int4=int4, fp8=fp8)

# base, what is changed (None: left out), the message
BAD = [
    ("packed", dict(cu_seqlens_q=None), "cu_seqlens_q is None, expected int32 .sequences . 1."),
    ("packed", dict(cu_seqlens_k=None), "cu_seqlens_k is None"),
    ("packed", dict(cu_seqlens_q=int32(0, 2, 5).long()), r"cu_seqlens_q is \[3\] int64 cpu, expected contiguous int32"),
    ("packed", dict(cu_seqlens_q=int32()), "cu_seqlens_q is empty"),
    ("packed", dict(cu_seqlens_q=int32(0, 2, 5).to("meta")), "cu_seqlens_q.device is meta, expected cpu"),
    ("packed", dict(cu_seqlens_q=int32(0, 2, 4)), "sum of the sequence lengths .cu_seqlens_q.-1.. is 4, expected 5"),
    ("packed", dict(cu_seqlens_q=int32(1, 2, 5)), r"cu_seqlens_q\[0\] is 1, expected 0"),
    ("packed", dict(cu_seqlens_q=int32(0, 6, 5)), r"cu_seqlens_q\[2\] is 5, expected 6 or more"),
    ("packed", dict(cu_seqlens_k=int32(0, 8)), "cu_seqlens_k is 2, expected 3"),
    ("packed", dict(cu_seqlens_k=int32(0, 3, 9)), "cu_seqlens_k.-1.. is 9, expected 8"),
    ("padded", dict(seqused_k=int32(3)), "seqused_k is 1, expected 2"),
    ("padded", dict(cu_seqlens_k=int32(0)), "cu_seqlens_k is 1, expected 3.*one start per sequence"),
    ("padded", dict(seqused_k=int32(3, 5)), r"keys of sequence 1 is \[4, 9\), expected a range inside \[0, 8\)"),
    ("padded", dict(seqused_k=int32(3, -1)), r"keys of sequence 1 is \[4, 3\)"),
    ("padded", dict(cu_seqlens_k=int32(-1, 4, 8)), r"keys of sequence 0 is \[-1, 2\)"),
    ("paged", dict(seqused_k=None), "seqused_k is None, expected int32 .sequences."),
    ("paged", dict(cu_seqlens_q=None), "cu_seqlens_q is None"),
    ("paged", dict(page_size=0), "page_size is 0, expected 1 or more keys"),
    ("paged", dict(page_size=2**40), "page_size is 1099511627776, expected 1 or more keys"),
    ("paged", dict(page_table=int32(3, 0)), r"page_table is \[2\] int32 cpu, expected int32 \[sequences, pages\]"),
    ("paged", dict(page_table=int32([3, 2], [0, 1]).t()), r"page_table is \[2, 2\] int32 cpu of stride \[1, 2\]"),
    ("paged", dict(page_table=int32([3, 0], [2, 1]).float()), r"page_table is \[2, 2\] fp32"),
    ("paged", dict(page_table=int32([3, 0])), "page_table.sequences is 1, expected 2"),
    ("paged", dict(page_table=int32([3, 0], [2, 1]).to("meta")), "page_table.device is meta, expected cpu"),
    ("paged", dict(page_table=int32([3, 0], [2, 4])), r"page_table\[1, 1\] is 4, expected a page.*4 pages of 2"),
    ("paged", dict(page_table=int32([3, -1], [2, 1])), r"page_table\[0, 1\] is -1, expected a page inside key"),
    ("paged", dict(seqused_k=int32(3, 5)), r"keys of sequence 1 is \[0, 5\), expected .*\[0, 4\), pages \* page_size"),
    ("paged", dict(cu_seqlens_k=int32(2, 1)), r"keys of sequence 0 is \[2, 5\)"),
    ("paged", dict(attn_bias=torch.zeros(1, 3, 5, 2)), r"attn_bias.shape is \[1, 3, 5, 2\], expected room for the"),
    ("int4", dict(key=torch.zeros(1, 8, 3, 4)), "value.dtype is int32, expected fp32 .*or int32 for both"),
    ("int4", dict(value=torch.zeros(1, 8, 3, 3, dtype=torch.int32)), "value.head_dim is 3, expected 4"),
    ("int4", dict(query=torch.zeros(1, 5, 3, 12)), "query.head_dim is 12, expected a multiple of 8 beside int4 keys"),
    ("int4", dict(query=torch.zeros(1, 5, 3, 8)), "number of int4 groups .* is 3, expected 1, 2, 4 or 8"),
    ("int4", dict(query=torch.zeros(1, 5, 3, 32)), "number of int4 groups .* is 0, expected 1, 2, 4 or 8"),
    ("fp8", dict(query=torch.zeros(1, 5, 3, 14)), "query.head_dim is 14, expected a multiple of 4 beside fp8 keys"),
    ("fp8", dict(query=torch.zeros(1, 5, 3, 12)), "key.head_dim is 4, expected 3"),
    ("fp8", dict(v_scale_shift=None), "v_scale_shift is None, expected int32"),
    ("fp8", dict(k_scale_shift=torch.zeros(1, 8, 3)), r"k_scale_shift is \[1, 8, 3\] fp32 cpu, expected int32"),
    ("fp8", dict(k_scale_shift=torch.zeros(1, 8, dtype=torch.int32)), r"k_scale_shift is \[1, 8\], expected \[1, 8"),
    ("fp8", dict(k_scale_shift=torch.zeros(1, 8, 3, dtype=torch.int32, device="meta")), "k_scale_shift is .* meta"),
    ("fp8", dict(key=torch.zeros(1, 8, 3, 16), value=torch.zeros(1, 8, 3, 16)), "key.dtype is fp32, expected int32"),
]  # fmt: skip


@pytest.mark.parametrize("name", BASES)
def test_the_bases_are_good(name):
    call = BASES[name]()
    assert forward(**call)[0].shape == call["query"].shape
    check_inputs(**call)


@pytest.mark.parametrize("base, change, message", BAD)
def test_bad_calls(base, change, message):
    call = {name: value for name, value in dict(BASES[base](), **change).items() if value is not None}
    for operator in (forward, check_inputs):
        with pytest.raises(ValueError, match=message):
            operator(**call)


def test_groups_divide_the_words():
    query, key = torch.zeros(1, 5, 3, 24), torch.zeros(1, 8, 3, 3 + 2, dtype=torch.int32)
    with pytest.raises(ValueError, match="is 2, expected 1, 2, 4 or 8, and a divisor of query.head_dim / 8"):
        forward(query, key, key)


def test_other_arguments():
    inputs = qkv(requires_grad=False)
    with pytest.raises(ValueError, match="out_dtype is int32, expected a floating dtype"):
        forward(*inputs, out_dtype=torch.int32)
    with pytest.raises(ValueError, match="num_splits is -1, expected 0 .chosen. or more"):
        forward(*inputs, num_splits=-1)
    with pytest.raises(ValueError, match="cu_seqlens_q is None"):
        forward(*inputs, page_table=int32([0]))


def test_check_inputs_alone():
    """Says nothing of what kernels lack: that is for whoever chooses among them."""
    query, key, value = qkv(requires_grad=False)
    check_inputs(query.to(torch.int8), key.to(torch.int8), value.to(torch.int8), p=0.5)
    with pytest.raises(ValueError, match="key.device is meta, expected cpu"):
        check_inputs(query, key.to("meta"), value)
    with pytest.raises(ValueError, match="p is 2"):
        check_inputs(query, key, value, p=2.0)
    with pytest.raises(ValueError, match="window_left is -2"):
        check_inputs(query, key, value, window_left=-2)
