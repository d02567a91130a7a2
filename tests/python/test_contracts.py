"""The contracts of the operators that are chosen by name: attributes, supported biases, extra checks, dispatch. The
tables here are written out by hand; the library has its own in C++."""

import json

import pytest
import torch
from attn_bias_cases import OPERATORS

ops = torch.ops.xformers

FORWARD = {"cutlass": "cutlassF", "flash": "fa2F", "flash3": "fa3F", "triton_splitk": "triton_splitKF"}
BACKWARD = {"cutlass": "cutlassB", "flash": "fa2B", "flash3": "fa3B"}
NAMED = [*FORWARD.values(), *BACKWARD.values()]
GENERIC = ["genericF", "genericB"]
NOT_BUILT = ["ckF", "ckB", "ck_decoderF", "ck_splitKF"]

HALF = {"float16", "bfloat16"}
# attribute -> key -> value
ATTRIBUTES = {
    "CUDA_MINIMUM_COMPUTE_CAPABILITY": {
        "cutlassF": [5, 0],
        "cutlassB": [5, 0],
        "fa2F": [8, 0],
        "fa2B": [8, 0],
        "fa3F": [9, 0],
        "fa3B": [9, 0],
        "triton_splitKF": [8, 0],
    },
    "SUPPORTED_DTYPES": {
        "cutlassF": HALF | {"float32"},
        "cutlassB": HALF | {"float32"},
        "fa2F": HALF,
        "fa2B": HALF,
        "fa3F": HALF,
        "fa3B": HALF,
        "triton_splitKF": HALF,
        "genericF": HALF | {"float32", "float64"},
        "genericB": HALF | {"float32", "float64"},
    },
    "SUPPORTED_MAX_K": {
        "cutlassF": 65536,
        "cutlassB": 65536,
        "fa2F": 256,
        "fa2B": 256,
        "fa3F": 256,
        "fa3B": 128,
        "triton_splitKF": 512,
        "genericF": 65536,
        "genericB": 65536,
    },
    "SUPPORTED_MIN_K": dict.fromkeys(NAMED + GENERIC, 0),
    "SUPPORTS_DIFFERENT_VALUE_EMBED": {key: key.startswith(("cutlass", "generic")) for key in NAMED + GENERIC},
    "SUPPORTS_DROPOUT": {key: key.startswith(("cutlass", "fa2", "generic")) for key in NAMED + GENERIC},
    "SUPPORTS_CUSTOM_SCALE": dict.fromkeys(NAMED + GENERIC, True),
    "SUPPORTS_OUTPUT_DTYPE": {key: key in ("triton_splitKF", *GENERIC) for key in NAMED + GENERIC},
    "SUPPORTS_PARTIAL": dict.fromkeys(NAMED + GENERIC, True),
    "SUPPORTS_BMGHK": {key: key.endswith("F") or key == "genericB" for key in NAMED + GENERIC},
    "SUPPORTS_ATTN_BIAS_GRAD": {key: key in ("cutlassB", "genericB") for key in NAMED + GENERIC},
    "IS_DETERMINISTIC": {key: key not in ("fa2B", "fa3B") for key in NAMED + GENERIC},
    "VARLEN_LSE_PACKED": {key: not key.startswith("cutlass") for key in NAMED + GENERIC},
    "LSE_PAD_TO": {key: 32 if key.startswith("cutlass") else 1 for key in NAMED + GENERIC},
    "LSE_FLOAT64": {key: key == "triton_splitKF" for key in NAMED + GENERIC},
    "NAME": {
        "cutlassF": "cutlassF",
        "cutlassB": "cutlassB",
        "fa2F": "fa2F@2.6.3",
        "fa2B": "fa2B@2.6.3",
        "fa3F": "fa3F@2.6.3",
        "fa3B": "fa3B@2.6.3",
        "triton_splitKF": "triton_splitKF",
        "ckF": "ckF",
        "ckB": "ckB",
        "ck_decoderF": "ck_decoderF",
        "ck_splitKF": "ck_splitKF",
        "genericF": "genericF",
        "genericB": "genericB",
    },
    "AVAILABLE": {**dict.fromkeys(NAMED + GENERIC, True), **dict.fromkeys(NOT_BUILT, False)},
    "OPERATOR_CATEGORY": dict.fromkeys(NAMED + GENERIC + NOT_BUILT, "memory_efficient_attention"),
}

# bias -> cutlass, flash, flash3, triton_splitk; F: forward, B: forward and backward, -: refused
BIASES = {"None": "BBBF", "Tensor": "B--F", **OPERATORS}
CELLS = [
    pytest.param(bias, module, letter, id=f"{bias}-{module}")
    for bias, letters in BIASES.items()
    for module, letter in zip(FORWARD, letters, strict=True)
]


def contract(key):
    return json.loads(ops.attention_contract(key))


def inputs(*, dtype=torch.float16, batch=1, seqlen_q=32, seqlen_k=32, heads=2, head_dim=64, head_dim_v=None):
    query = torch.zeros(batch, seqlen_q, heads, head_dim, dtype=dtype)
    key = torch.zeros(batch, seqlen_k, heads, head_dim, dtype=dtype)
    value = torch.zeros(batch, seqlen_k, heads, head_dim if head_dim_v is None else head_dim_v, dtype=dtype)
    return query, key, value


def of_bias(name):
    """Arguments beside the tensors for a bias of this class over 32 queries and 32 keys (paged: 256)."""
    arguments = {"bias_type": name}
    if "BlockDiagonal" in name:
        arguments.update(seqlens_q=[20, 12], seqlens_k=[20, 12])
    if name.startswith("Paged"):
        arguments.update(page_size=256)
    return arguments


def reasons(key, *tensors, **arguments):
    return ops.attention_not_supported_reasons(key, *(tensors or inputs()), **arguments)


def test_keys():
    assert ops.attention_contracts() == [
        *("cutlassF", "cutlassB", "fa2F", "fa2B", "fa3F", "fa3B", "triton_splitKF"),
        *NOT_BUILT,
        *GENERIC,
    ]
    with pytest.raises(ValueError, match="the operator is small_kF, expected one of cutlassF, cutlassB"):
        ops.attention_contract("small_kF")


@pytest.mark.parametrize(
    ("attribute", "key", "value"),
    [(attribute, key, value) for attribute, row in ATTRIBUTES.items() for key, value in row.items()],
)
def test_attribute(attribute, key, value):
    got = contract(key)[attribute]
    assert (set(got) if isinstance(value, set) else got) == value


@pytest.mark.parametrize("key", NAMED + GENERIC + NOT_BUILT)
def test_tolerances(key):
    got = contract(key)
    if key.endswith("B"):
        atol, rtol = (
            {"float32": 9e-4, "float16": 0.2, "bfloat16": 0.9},
            {"float32": 1e-4, "float16": 2e-2, "bfloat16": 0.1},
        )
    elif key == "ckF":
        atol, rtol = (
            {"float32": 3e-4, "float16": 6e-3, "bfloat16": 2.8e-2},
            {
                "float32": 2e-5,
                "float16": 3e-3,
                "bfloat16": 2e-2,
            },
        )
    else:
        atol, rtol = (
            {"float32": 3e-4, "float16": 4e-3, "bfloat16": 2e-2},
            {
                "float32": 2e-5,
                "float16": 4e-4,
                "bfloat16": 5e-3,
            },
        )
    assert {name: got["ERROR_ATOL"][name] for name in atol} == atol
    assert {name: got["ERROR_RTOL"][name] for name in rtol} == rtol


@pytest.mark.parametrize(("bias", "module", "letter"), CELLS)
def test_bias(bias, module, letter):
    tensors = inputs(seqlen_k=256 if bias.startswith("Paged") else 32)
    for keys, supported in ((FORWARD, letter in "FB"), (BACKWARD, letter == "B")):
        if module not in keys:
            continue
        assert (bias in contract(keys[module])["SUPPORTED_ATTN_BIAS_TYPES"]) == supported
        found = reasons(keys[module], *tensors, **of_bias(bias))
        assert (found == []) == supported, found
        if not supported:
            assert any(f"the type of attn_bias is {bias}, expected exactly one of None" in text for text in found)


@pytest.mark.parametrize("bias", [*BIASES, "MyMask"])
@pytest.mark.parametrize("key", GENERIC)
def test_generic_takes_every_bias(key, bias):
    assert reasons(key, **of_bias(bias)) == []
    assert bias == "MyMask" or bias in contract(key)["SUPPORTED_ATTN_BIAS_TYPES"]


@pytest.mark.parametrize("key", NAMED)
def test_derived_classes_are_not_accepted(key):
    assert len(reasons(key, bias_type="MyLowerTriangularMask")) == 1


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64, torch.int64])
@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_dtype(key, dtype):
    supported = str(dtype).removeprefix("torch.") in contract(key)["SUPPORTED_DTYPES"]
    found = reasons(key, *inputs(dtype=dtype))
    assert any(text.startswith("query.dtype is") for text in found) == (not supported)
    assert (found == []) == supported


HEAD_DIMS = [1, 5, 8, 16, 64, 72, 96, 128, 224, 256, 264, 512, 520, 65536, 65544]


@pytest.mark.parametrize("head_dim", HEAD_DIMS)
@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_head_dim(key, head_dim):
    supported = {
        "cutlassF": head_dim <= 65536,
        "cutlassB": head_dim <= 65536,
        "fa2F": head_dim <= 256 and head_dim % 8 == 0,
        "fa2B": head_dim <= 256 and head_dim % 8 == 0,
        "fa3F": head_dim in (64, 128, 256),
        "fa3B": head_dim in (64, 128),
        "triton_splitKF": head_dim <= 512 and head_dim % 8 == 0,
        "genericF": head_dim <= 65536,
        "genericB": head_dim <= 65536,
    }[key]
    found = reasons(key, *inputs(head_dim=head_dim, seqlen_q=1, seqlen_k=1))
    assert (found == []) == supported, found
    by_shape = ops.attention_shape_not_supported_reasons(key, 1, 1, head_dim, head_dim)
    assert set(by_shape) <= set(found)
    assert supported or by_shape or head_dim % 8 != 0


@pytest.mark.parametrize("key", NAMED + GENERIC)
@pytest.mark.parametrize(
    ("attribute", "arguments"),
    [
        ("SUPPORTS_DROPOUT", {"p": 0.5}),
        ("SUPPORTS_CUSTOM_SCALE", {"scale_given": True}),
        ("SUPPORTS_OUTPUT_DTYPE", {"output_dtype": torch.float32}),
        ("SUPPORTS_PARTIAL", {"is_partial": True}),
    ],
)
def test_option(key, attribute, arguments):
    assert (reasons(key, **arguments) == []) == contract(key)[attribute]


@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_other_value_head_dim(key):
    found = reasons(key, *inputs(head_dim_v=128))
    assert (found == []) == contract(key)["SUPPORTS_DIFFERENT_VALUE_EMBED"]


@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_groups_of_heads(key):
    x = torch.zeros(1, 32, 2, 3, 64, dtype=torch.float16)
    assert (reasons(key, x, x, x) == []) == contract(key)["SUPPORTS_BMGHK"]


@pytest.mark.parametrize("key", [*BACKWARD.values(), "genericB"])
def test_gradient_of_a_tensor_bias(key):
    found = reasons(key, bias_type="Tensor", dense_bias=torch.zeros(1, 2, 32, 32), bias_requires_grad=True)
    assert (found == []) == contract(key)["SUPPORTS_ATTN_BIAS_GRAD"]


@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_deterministic_algorithms(key):
    torch.use_deterministic_algorithms(True)
    try:
        found = reasons(key)
    finally:
        torch.use_deterministic_algorithms(False)
    assert (found == []) == contract(key)["IS_DETERMINISTIC"]
    assert reasons(key) == []


@pytest.mark.parametrize("key", NOT_BUILT)
def test_not_built(key):
    assert any("python -m xformers.info" in text for text in reasons(key))


@pytest.mark.parametrize(
    "bias", ["LowerTriangularMask", "BlockDiagonalCausalMask", "BlockDiagonalCausalLocalAttentionMask"]
)
@pytest.mark.parametrize("key", ["fa2F", "fa2B", "cutlassF", "cutlassB", "genericF", "genericB"])
def test_top_left_causal_with_other_lengths(key, bias):
    lengths = {"seqlens_q": [20, 12], "seqlens_k": [12, 52]} if bias.startswith("Block") else {}
    found = reasons(key, *inputs(seqlen_k=64), bias_type=bias, **lengths)
    assert (found == []) == (not key.startswith("fa2"))


@pytest.mark.parametrize("key", ["fa2F", "fa3F"])
def test_groups_that_do_not_collapse(key):
    x = torch.zeros(1, 32, 2, 3, 64, dtype=torch.float16)
    apart = torch.zeros(1, 32, 3, 2, 64, dtype=torch.float16).transpose(2, 3)
    expanded = torch.zeros(1, 32, 2, 1, 64, dtype=torch.float16).expand(-1, -1, -1, 3, -1)
    assert len(reasons(key, apart, x, x)) == 1
    assert reasons(key, x, expanded, expanded) == []


@pytest.mark.parametrize("name", ["query", "key", "value"])
@pytest.mark.parametrize("key", ["fa2F", "fa2B", "fa3F", "fa3B", "triton_splitKF"])
def test_alignment(key, name):
    aligned = torch.zeros(1, 32, 2, 64, dtype=torch.float16)
    odd = torch.zeros(1, 32, 2, 65, dtype=torch.float16)[..., :64]
    tensors = [odd if name == other else aligned for other in ("query", "key", "value")]
    assert reasons(key, *tensors) == [f"{name}.stride(-2) is 65, expected a multiple of 8"]


@pytest.mark.parametrize(("page_size", "flash", "split_k"), [(256, True, True), (64, False, True), (5, False, True)])
def test_page_size(page_size, flash, split_k):
    tensors = inputs(seqlen_k=1280)
    arguments = {**of_bias("PagedBlockDiagonalPaddedKeysMask"), "page_size": page_size}
    assert (reasons("fa2F", *tensors, **arguments) == []) == flash
    assert (reasons("triton_splitKF", *tensors, **arguments) == []) == split_k


@pytest.mark.parametrize("seqlens_q", [[1, 1], [16, 16], [17, 17], [3, 7]])
def test_split_k_takes_any_number_of_causal_queries(seqlens_q):
    arguments = {"seqlens_q": seqlens_q, "seqlens_k": [20, 12]}
    tensors = inputs(seqlen_q=sum(seqlens_q))
    for bias in ("BlockDiagonalCausalWithOffsetPaddedKeysMask", "BlockDiagonalCausalWithOffsetGappyKeysMask"):
        assert reasons("triton_splitKF", *tensors, bias_type=bias, **arguments) == []
    wrong = inputs(seqlen_q=sum(seqlens_q) + 1)
    assert reasons("triton_splitKF", *wrong, bias_type=bias, **arguments) == [
        f"query.seqlen is {sum(seqlens_q) + 1}, expected {sum(seqlens_q)}, the sum of the lengths"
    ]


@pytest.mark.parametrize("key", NAMED + GENERIC)
def test_int32_keys(key):
    query = torch.zeros(1, 4, 2, 64, dtype=torch.float16)
    rows = torch.zeros(1, 32, 2, 9, dtype=torch.int32)
    assert (reasons(key, query, rows, rows) == []) == (key in ("triton_splitKF", "genericF"))


@pytest.mark.parametrize("groups", [1, 2, 4, 8])
def test_int4_groups(groups):
    query = torch.zeros(1, 4, 2, 64, dtype=torch.float16)
    rows = torch.zeros(1, 32, 2, groups + 8, dtype=torch.int32)
    assert reasons("triton_splitKF", query, rows, rows, num_groups=groups) == []
    assert reasons("triton_splitKF", query, rows, rows, num_groups=2 * groups) != []
    assert ops.attention_dispatch(False, query, rows, rows) == "triton_splitKF"


def test_no_keys_at_all():
    assert reasons("triton_splitKF", *inputs(seqlen_k=0)) == []


@pytest.mark.parametrize("key", NAMED)
def test_compute_capability_does_not_matter_on_the_cpu(key):
    assert reasons(key, *inputs(dtype=torch.bfloat16), cuda_capability=[5, 0]) == []


def test_tensors_without_a_common_layout():
    flat = torch.zeros(4, 4)
    assert reasons("genericF", flat, flat, flat) == [
        "query.ndim, key.ndim and value.ndim are 2, 2 and 2, expected 3, 4 or 5 for all"
    ]


def decoding(batch=1, seqlen_q=8, seqlen_k=2048, heads=32, shared=True):
    query = torch.zeros(batch, seqlen_q, heads, 16, dtype=torch.float16)
    key = torch.zeros(batch, seqlen_k, 1 if shared else heads, 16, dtype=torch.float16).expand(-1, -1, heads, -1)
    return query, key, key


USUAL = ["fa2F", "cutlassF", "triton_splitKF", "genericF"]
SPLIT_SECOND = ["fa2F", "triton_splitKF", "cutlassF", "genericF"]


@pytest.mark.parametrize(
    ("tensors", "arguments", "expected"),
    [
        (inputs(), {}, USUAL),
        (inputs(), {"use_fa3": True}, ["fa3F", *USUAL]),
        (decoding(), {}, SPLIT_SECOND),
        (decoding(), {"use_fa3": True}, SPLIT_SECOND),
        (decoding(), {"needs_gradient": True}, USUAL),
        (decoding(), {"is_partial": True}, USUAL),
        (decoding(shared=False), {}, USUAL),
        (decoding(seqlen_q=128), {}, USUAL),
        (decoding(seqlen_q=33), {}, USUAL),
        (decoding(seqlen_k=255), {}, USUAL),
        (decoding(batch=128), {}, USUAL),
        (decoding(batch=2), {}, USUAL),
        (decoding(heads=31, batch=2), {}, SPLIT_SECOND),
        (
            decoding(seqlen_q=33, seqlen_k=33 * 512, heads=1 + 1),
            {"bias_type": "BlockDiagonalMask", "seqlens_q": [3] * 11, "seqlens_k": [1536] * 11},
            ["triton_splitKF", "fa2F", "cutlassF", "genericF"],
        ),
        (
            decoding(seqlen_q=33, seqlen_k=33 * 512, heads=1 + 1),
            {"bias_type": "BlockDiagonalPaddedKeysMask", "seqlens_q": [1] * 33, "seqlens_k": [512] * 33},
            USUAL,
        ),
    ],
)
def test_order_of_forward_operators(tensors, arguments, expected):
    assert ops.attention_priority(False, *tensors, **arguments) == expected


def test_order_of_backward_operators():
    assert ops.attention_priority(True, *inputs(), use_fa3=True) == ["fa2B", "cutlassB", "genericB"]


@pytest.mark.parametrize(
    ("arguments", "forward", "backward"),
    [
        ({}, "fa2F", "fa2B"),
        ({"bias_type": "Tensor"}, "cutlassF", "cutlassB"),
        ({"bias_type": "PagedBlockDiagonalGappyKeysMask", "page_size": 8}, "triton_splitKF", "genericB"),
        ({"bias_type": "BlockDiagonalPaddedKeysMask", "seqlens_q": [20, 12], "seqlens_k": [9, 4]}, "fa2F", "genericB"),
        ({"bias_type": "LowerTriangularFromBottomRightLocalAttentionMask"}, "fa2F", "fa2B"),
    ],
)
def test_dispatch(arguments, forward, backward):
    assert ops.attention_dispatch(False, *inputs(), needs_gradient=True, **arguments) == forward
    assert ops.attention_dispatch(True, *inputs(), pair_with=forward, **arguments) == backward


def test_deterministic_training_on_sequences_finds_a_pair():
    arguments = of_bias("BlockDiagonalMask")
    torch.use_deterministic_algorithms(True)
    try:
        forward = ops.attention_dispatch(False, *inputs(), needs_gradient=True, **arguments)
        backward = ops.attention_dispatch(True, *inputs(), pair_with=forward, **arguments)
    finally:
        torch.use_deterministic_algorithms(False)
    assert contract(backward)["IS_DETERMINISTIC"]
    ops.attention_check_pair(forward, backward, num_sequences=2)


def test_dispatch_names_all_reasons():
    with pytest.raises(NotImplementedError) as raised:
        ops.attention_dispatch(False, *inputs(dtype=torch.int64), p=0.5, bias_type="BlockDiagonalMask")
    text = str(raised.value)
    assert text.startswith("memory_efficient_attention_forward: no operator takes these inputs.")
    assert "query [1, 32, 2, 64] int64 cpu · key [1, 32, 2, 64] int64 cpu · value [1, 32, 2, 64] int64 cpu" in text
    assert "attn_bias BlockDiagonalMask · p 0.5" in text
    for name in ("fa2F@2.6.3", "cutlassF", "triton_splitKF", "genericF"):
        assert f"{name} does not take them:" in text
    assert "p is 0.5, expected 0: this operator has no dropout" in text


def test_require_names_the_operator_and_all_reasons():
    ops.attention_require("cutlassF", *inputs())
    with pytest.raises(ValueError) as raised:
        ops.attention_require("triton_splitKF", *inputs(dtype=torch.float32), p=0.5, name="triton_splitK8")
    for part in (
        "operator triton_splitK8 does not take these inputs",
        "query.dtype is fp32",
        "p is 0.5",
        "attn_bias None",
    ):
        assert part in str(raised.value)
    with pytest.raises(ValueError, match="operator fa2F@2.6.3 does not take"):
        ops.attention_require("fa2F", *inputs(dtype=torch.float32))
    with pytest.raises(ValueError, match="cuda_capability has 1 numbers"):
        ops.attention_require("fa2F", *inputs(), cuda_capability=[8])


@pytest.mark.parametrize("p", [0.0, 0.5])
@pytest.mark.parametrize("num_sequences", [0, 1, 2])
@pytest.mark.parametrize("forward", [*FORWARD, "generic"])
@pytest.mark.parametrize("backward", [*BACKWARD, "generic"])
def test_pairs(forward, backward, num_sequences, p):
    keys = ({**FORWARD, "generic": "genericF"}[forward], {**BACKWARD, "generic": "genericB"}[backward])
    same_format = (forward == "cutlass") == (backward == "cutlass")
    if (p == 0 or forward == backward) and (num_sequences < 2 or same_format):
        ops.attention_check_pair(*keys, p, num_sequences)
        return
    with pytest.raises(ValueError) as raised:
        ops.attention_check_pair(*keys, p, num_sequences)
    assert all(contract(key)["NAME"] in str(raised.value) for key in keys)


@pytest.mark.parametrize(("causal", "backward"), [(False, False), (True, False), (False, True), (True, True)])
def test_flops(causal, backward):
    visible = 2 * 5 * 2 + 5 * 5 if causal else 2 * 5 * 7  # twice the pairs that count
    expected = 2 * 3 * visible * (8 + 16)
    got = ops.attention_flops([2, 5, 3, 8], [2, 7, 3, 8], [2, 7, 3, 16], causal=causal, backward=backward)
    assert got == (expected * 5 // 2 if backward else expected)
    transposed = ops.attention_flops(
        [2, 3, 5, 8], [2, 3, 7, 8], [2, 3, 7, 16], causal=causal, backward=backward, heads_first=True
    )
    assert transposed == got


def test_flops_of_packed_sequences():
    cu_seqlens_q, cu_seqlens_k = (torch.tensor(x, dtype=torch.int32) for x in ([0, 2, 5], [0, 4, 10]))
    sizes = ([1, 5, 3, 8], [1, 10, 3, 8], [1, 10, 3, 8])
    got = ops.attention_flops(*sizes, cu_seqlens_q=cu_seqlens_q, cu_seqlens_k=cu_seqlens_k)
    assert got == 3 * 2 * (2 * 4 + 3 * 6) * 16
    with torch._subclasses.FakeTensorMode() as mode:
        fake = mode.from_tensor(cu_seqlens_q)
        assert ops.attention_flops(*sizes, cu_seqlens_q=fake, cu_seqlens_k=fake) == 3 * 2 * 2 * (2 * 5) * 16
