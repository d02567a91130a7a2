// Why named operators refuse calls.
#include <gtest/gtest.h>

#include "tests/ops/contract_check.h"
#include "xformers/kernels/base/error.h"

namespace xformers::ops {
namespace {

TEST(Contracts, AreFoundByKey) {
  for (const Contract& contract : contracts()) EXPECT_EQ(&find_contract(contract.key), &contract);
  EXPECT_EQ(find_contract("fa2F").name(), "fa2F@2.6.3");
  EXPECT_EQ(find_contract("cutlassB").name(), "cutlassB");
  EXPECT_THROW(find_contract("small_k"), Error);
}

TEST(Contracts, BiasesAreFoundByName) {
  for (const BiasRow& bias : bias_rows()) EXPECT_EQ(find_bias(bias.name), &bias);
  EXPECT_EQ(find_bias("MyMask"), nullptr);
}

TEST(Reasons, NoneForAPlainCall) {
  const Call call = call_of(at::kHalf);
  for (const char* key :
       {"cutlassF", "cutlassB", "fa2F", "fa2B", "fa3F", "fa3B", "triton_splitKF", "genericF", "genericB"}) {
    EXPECT_EQ(reasons_of(key, call.request()), Reasons{}) << key;
  }
}

TEST(Reasons, AreComplete) {
  const Call call = call_of(at::kDouble, 16, 16, 520);
  AttentionRequest request = call.request();
  request.bias = "Tensor";
  request.p = 0.5;
  request.output_dtype = at::kFloat;
  std::string names;  // who they are, the golden examples say
  for (const BiasRow& bias : bias_rows()) {
    if (bias.taken_by & kFlashF) names += (names.empty() ? "" : ", ") + std::string(bias.name);
  }
  EXPECT_EQ(reasons_of("fa2F", request),
            (Reasons{"head_dim is 520, expected 256 or less", "query.dtype is fp64, expected fp16 or bf16",
                     "output_dtype is fp32, expected None or fp64, the query's",
                     "the type of attn_bias is Tensor, expected exactly one of " + names}));
  EXPECT_EQ(reasons_of("triton_splitKF", request),
            (Reasons{"head_dim is 520, expected 512 or less", "query.dtype is fp64, expected fp16 or bf16",
                     "p is 0.5, expected 0: this operator has no dropout"}));
}

TEST(Reasons, NdimThatNoLayoutHas) {
  const at::Tensor flat = at::zeros({4, 4});
  EXPECT_EQ(reasons_of("genericF", {.query = flat, .key = flat, .value = flat}),
            (Reasons{"query.ndim, key.ndim and value.ndim are 2, 2 and 2, expected 3, 4 or 5 for all"}));
}

TEST(Reasons, ValuesOfAnotherHeadDim) {
  Call call = call_of(at::kHalf);
  call.value = at::zeros({1, 16, 2, 32}, at::kHalf);
  EXPECT_EQ(reasons_of("cutlassF", call.request()), Reasons{});
  EXPECT_EQ(reasons_of("fa2B", call.request()), (Reasons{"value.head_dim is 32, expected 64 like the query's"}));
}

TEST(Reasons, GroupsOfHeads) {
  const at::Tensor x = at::zeros({1, 16, 2, 3, 64}, at::kHalf);
  const AttentionRequest request{.query = x, .key = x, .value = x};
  EXPECT_EQ(reasons_of("fa2F", request), Reasons{});
  for (const char* key : {"cutlassB", "fa2B", "fa3B"}) {
    EXPECT_EQ(reasons_of(key, request),
              (Reasons{"query.ndim is 5, expected 3 or 4: this operator takes no groups of heads (BMGHK)"}));
  }
  EXPECT_EQ(reasons_of("genericB", request), Reasons{});
}

TEST(Reasons, GroupsThatAreNotOneDimensionInMemory) {
  const at::Tensor x = at::zeros({1, 16, 2, 3, 64}, at::kHalf);
  const at::Tensor apart = at::zeros({1, 16, 3, 2, 64}, at::kHalf).transpose(2, 3);
  EXPECT_EQ(reasons_of("fa2F", {.query = apart, .key = x, .value = x}),
            (Reasons{"query has shape [1, 16, 2, 3, 64] and strides [6144, 384, 64, 128, 1], expected groups and heads "
                     "that are one dimension in memory, or `expand`ed heads"}));
  const at::Tensor expanded = at::zeros({1, 16, 2, 1, 64}, at::kHalf).expand({-1, -1, -1, 3, -1});
  EXPECT_EQ(reasons_of("fa2F", {.query = x, .key = expanded, .value = expanded}), Reasons{});
}

TEST(Reasons, StridesAndAlignment) {
  const at::Tensor x = at::zeros({1, 16, 2, 64}, at::kHalf);
  const at::Tensor odd = at::zeros({1, 16, 2, 67}, at::kHalf).narrow(3, 0, 64);
  const at::Tensor transposed = at::zeros({1, 16, 64, 2}, at::kHalf).transpose(2, 3);
  for (const char* key : {"fa2F", "fa3F", "triton_splitKF"}) {
    EXPECT_EQ(reasons_of(key, {.query = x, .key = odd, .value = x}),
              (Reasons{"key.stride(-2) is 67, expected a multiple of 8"}))
        << key;
  }
  EXPECT_EQ(reasons_of("fa2F", {.query = transposed, .key = x, .value = x}),
            (Reasons{"query.stride(-2) is 1, expected a multiple of 8",
                     "query.stride(-1) is 2, expected 1: call .contiguous()"}));
  EXPECT_EQ(reasons_of("cutlassF", {.query = x, .key = transposed, .value = x}), Reasons{});
  EXPECT_EQ(reasons_of("cutlassB", {.query = x, .key = transposed, .value = x}),
            (Reasons{"key.stride(-1) is 2, expected 1: call .contiguous()"}));
  EXPECT_EQ(reasons_of("cutlassF", call_of(at::kFloat, 4, 4, 5).request()), Reasons{});
  EXPECT_EQ(reasons_of("genericF", {.query = transposed, .key = odd, .value = x}), Reasons{});
  Reasons reasons;
  check_lastdim_alignment_stride1(reasons, "x", at::zeros({4, 1}).expand({4, 8}), 8);  // stride(-2) is 1
  EXPECT_EQ(reasons, (Reasons{"x.stride(-2) is 1, expected a multiple of 8"}));
}

TEST(Reasons, CutlassAlignmentFollowsTheDevice) {
  const auto of = [](const char* key, at::ScalarType dtype, CudaCapability capability) {
    const Call call = claimed_on_cuda(call_of(dtype, 16, 16, 36));
    AttentionRequest request = call.request();
    request.capability = capability;
    return reasons_of(key, request).size();
  };
  EXPECT_EQ(of("cutlassF", at::kHalf, {8, 0}), 2u);   // query and value
  EXPECT_EQ(of("cutlassB", at::kHalf, {8, 0}), 3u);   // and key
  EXPECT_EQ(of("cutlassF", at::kFloat, {8, 0}), 0u);  // a multiple of 4 will do
  EXPECT_EQ(of("cutlassF", at::kHalf, {7, 5}), 2u);
  EXPECT_EQ(of("cutlassF", at::kFloat, {7, 5}), 0u);
  EXPECT_EQ(of("cutlassF", at::kHalf, {6, 0}), 0u);
}

TEST(Reasons, ComputeCapability) {
  const Call call = claimed_on_cuda(call_of(at::kBFloat16));
  AttentionRequest request = call.request();
  EXPECT_EQ(reasons_of("fa3F", request), Reasons{});  // unknown
  request.capability = CudaCapability{7, 5};
  EXPECT_EQ(reasons_of("triton_splitKF", request),
            (Reasons{"the device's compute capability is 7.5, expected 8.0 or higher",
                     "query.dtype is bf16 on a device of compute capability 7.5, expected fp16 or fp32 below 8.0"}));
  request.capability = CudaCapability{8, 6};
  EXPECT_EQ(reasons_of("fa2F", request), Reasons{});
  EXPECT_EQ(reasons_of("fa3F", request), (Reasons{"the device's compute capability is 8.6, expected 9.0 or higher"}));
  const Call on_cpu = call_of(at::kBFloat16);
  AttentionRequest cpu_request = on_cpu.request();
  cpu_request.capability = CudaCapability{5, 0};
  EXPECT_EQ(reasons_of("fa3F", cpu_request), Reasons{});  // of another device than the tensors'
}

TEST(Reasons, DeviceWithoutKernels) {
  const Call call = claimed_on_cuda(call_of(at::kHalf));
  const Reasons reasons = not_supported_reasons(find_contract("genericF"), call.request());
  if (has_attention_kernels(at::kCUDA)) {
    EXPECT_EQ(reasons, Reasons{});
  } else {
    ASSERT_EQ(reasons.size(), 1u);
    const std::string& reason = reasons[0];
    EXPECT_EQ(reason.find("query.device is cuda:0, expected cpu: this library was built without CUDA kernels.  Fix: "),
              0u);
    EXPECT_NE(reason.find("pip install . -C cmake.define.XFORMERS_CUDA=ON"), std::string::npos);
  }
  EXPECT_TRUE(has_attention_kernels(at::kCPU));
  EXPECT_FALSE(has_attention_kernels(at::kXPU));
}

TEST(Reasons, OperatorsThatWereNotBuilt) {
  const Call call = call_of(at::kHalf);
  EXPECT_EQ(reasons_of("ckF", call.request()),
            (Reasons{"query.device is cpu, expected cuda",
                     "this operator was not built (it exists for ROCm alone), see: python -m xformers.info"}));
  for (const char* key : {"ckB", "ck_decoderF", "ck_splitKF"}) EXPECT_FALSE(reasons_of(key, call.request()).empty());
}

TEST(Reasons, DropoutOfLongHeadsNeedsSharedMemory) {
  const auto count = [](CudaCapability capability, int64_t head_dim, double p) {
    const Call call = claimed_on_cuda(call_of(at::kHalf, 16, 16, head_dim));
    AttentionRequest request = call.request();
    request.capability = capability;
    request.p = p;
    return reasons_of("fa2B", request).size();
  };
  EXPECT_EQ(count({8, 6}, 256, 0.1), 1u);
  EXPECT_EQ(count({8, 6}, 224, 0.1), 0u);
  EXPECT_EQ(count({8, 6}, 256, 0.0), 0u);
  EXPECT_EQ(count({8, 0}, 256, 0.1), 0u);
  EXPECT_EQ(count({9, 0}, 256, 0.1), 0u);
}

TEST(Reasons, Determinism) {
  const Call call = call_of(at::kHalf);
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  const Reasons flash = reasons_of("fa2B", call.request()), cutlass = reasons_of("cutlassB", call.request());
  at::globalContext().setDeterministicAlgorithms(false, false);
  EXPECT_EQ(flash, (Reasons{"this operator is not deterministic, and torch.use_deterministic_algorithms(True) is in "
                            "force"}));
  EXPECT_EQ(cutlass, Reasons{});
}

TEST(Reasons, GradientOfTheBias) {
  const Call call = call_of(at::kHalf);
  AttentionRequest request = call.request();
  request.bias = "Tensor";
  request.bias_requires_grad = true;
  EXPECT_EQ(reasons_of("cutlassB", request), Reasons{});
  EXPECT_EQ(reasons_of("fa2B", request).back(),
            "attn_bias.requires_grad is True, expected False: this operator has no gradient of the bias");
  EXPECT_EQ(reasons_of("fa2F", request).size(), 1u);  // a forward needs none
}

TEST(Reasons, ClassesThatUsersDerive) {
  const Call call = call_of(at::kHalf);
  AttentionRequest request = call.request();
  request.bias = "MyMask";
  EXPECT_EQ(reasons_of("genericF", request), Reasons{});
  EXPECT_EQ(reasons_of("cutlassF", request).size(), 1u);
}

TEST(Reasons, TopLeftCausalOnFlashNeedsEqualLengths) {
  const Call call = call_of(at::kHalf, 16, 24), square = call_of(at::kHalf);
  for (const char* key : {"fa2F", "fa2B", "fa3F", "fa3B"}) {
    AttentionRequest request = call.request(), equal = square.request();
    request.bias = equal.bias = "LowerTriangularMask";
    EXPECT_EQ(reasons_of(key, request).size(), 1u) << key;
    EXPECT_EQ(reasons_of(key, equal), Reasons{}) << key;
    request.bias = "LowerTriangularFromBottomRightMask";
    EXPECT_EQ(reasons_of(key, request), Reasons{}) << key;
  }
  for (const char* bias : {"BlockDiagonalCausalMask", "BlockDiagonalCausalLocalAttentionMask"}) {
    AttentionRequest request = square.request();
    request.bias = bias;
    request.seqlens_q = {10, 6};
    request.seqlens_k = {6, 10};  // the same total
    EXPECT_EQ(reasons_of("fa2F", request).size(), 1u) << bias;
    EXPECT_EQ(reasons_of("cutlassF", request), Reasons{}) << bias;
    request.seqlens_k = {10, 6};
    EXPECT_EQ(reasons_of("fa2F", request), Reasons{}) << bias;
  }
}

TEST(Reasons, PageSizes) {
  const auto of = [](const char* key, int64_t page_size, int64_t seqlen_k) {
    const Call call = call_of(at::kHalf, 2, seqlen_k);
    AttentionRequest request = call.request();
    request.bias = "PagedBlockDiagonalPaddedKeysMask";
    request.seqlens_q = {1, 1};
    request.seqlens_k = {5, 9};
    request.page_size = page_size;
    return reasons_of(key, request);
  };
  EXPECT_EQ(of("fa2F", 256, 512), Reasons{});
  EXPECT_EQ(of("fa2F", 64, 512), (Reasons{"page_size is 64, expected a multiple of 256"}));
  EXPECT_EQ(of("triton_splitKF", 5, 15), Reasons{});
  EXPECT_EQ(of("triton_splitKF", 0, 15), (Reasons{"page_size is 0, expected 1 or more"}));
  EXPECT_EQ(of("triton_splitKF", 4, 15), (Reasons{"key.seqlen is 15, expected a multiple of page_size 4"}));
}

TEST(Reasons, SplitK) {
  const Call call = call_of(at::kHalf, 16, 0);
  AttentionRequest request = call.request();
  request.split_k = 48;
  EXPECT_EQ(reasons_of("triton_splitKF", request), Reasons{});  // no keys at all
  request.split_k = -1;
  EXPECT_EQ(reasons_of("triton_splitKF", request), (Reasons{"SPLIT_K is -1, expected None or 1 or more"}));
  request.split_k = 0;
  request.bias = "BlockDiagonalPaddedKeysMask";
  request.seqlens_q = {3, 5};
  EXPECT_EQ(reasons_of("triton_splitKF", request), (Reasons{"query.seqlen is 16, expected 8, the sum of the lengths"}));
  AttentionRequest with_tensor = call.request();
  with_tensor.bias = "Tensor";
  with_tensor.dense_bias = at::zeros({1, 16, 0}, at::kHalf);
  with_tensor.split_k = 4;
  EXPECT_EQ(reasons_of("triton_splitKF", with_tensor), (Reasons{"attn_bias.ndim is 3, expected 4 or 5"}));
  with_tensor.dense_bias = at::zeros({1, 2, 16, 0}, at::kHalf);
  EXPECT_EQ(reasons_of("triton_splitKF", with_tensor), Reasons{});
}

TEST(Reasons, QuantisedKeys) {
  const at::Tensor query = at::zeros({1, 4, 2, 64}, at::kHalf);
  const auto of = [&](const char* key, int64_t words, std::optional<int64_t> groups, bool fp8 = false) {
    const at::Tensor rows = at::zeros({1, 16, 2, words}, at::kInt);
    AttentionRequest request{.query = query, .key = rows, .value = rows};
    request.num_groups = groups;
    request.fp8 = fp8;
    return reasons_of(key, request);
  };
  const char* split_k = "triton_splitKF";
  for (const int64_t groups : {1, 2, 4, 8}) {
    EXPECT_EQ(of(split_k, groups + 8, groups), Reasons{});
    EXPECT_EQ(of(split_k, groups + 8, std::nullopt), Reasons{});
    EXPECT_EQ(of("genericF", groups + 8, std::nullopt), Reasons{});
  }
  EXPECT_EQ(of(split_k, 10, 1),
            (Reasons{"key.size(-1) is 10, expected 1 coefficient words (NUM_GROUPS) and 64 / 8 words "
                     "of eight int4 numbers"}));
  EXPECT_EQ(of(split_k, 11, std::nullopt), (Reasons{"key.size(-1) is 11, expected 1, 2, 4 or 8 coefficient words "
                                                    "(NUM_GROUPS) and 64 / 8 words of eight int4 numbers"}));
  EXPECT_EQ(of(split_k, 11, 3).front(), "NUM_GROUPS is 3, expected 1, 2, 4 or 8");
  EXPECT_EQ(of(split_k, 8, 0).size(), 2u);
  EXPECT_EQ(of(split_k, 16, 1, /*fp8=*/true), Reasons{});
  EXPECT_EQ(of(split_k, 12, 1, /*fp8=*/true),
            (Reasons{"key.size(-1) is 12, expected 64 / 4 words of four fp8 numbers"}));
  EXPECT_EQ(of(split_k, 16, 2, /*fp8=*/true), (Reasons{"NUM_GROUPS is 2, expected 1 for keys that are not int4"}));
  EXPECT_EQ(of("fa2F", 9, 1), (Reasons{"key.dtype is int32 (quantised), expected the query's"}));
  EXPECT_EQ(of("cutlassB", 9, 1),
            (Reasons{"key.dtype is int32 (quantised), expected the query's: quantised keys have no gradient"}));
  EXPECT_FALSE(of("genericB", 9, 1).empty());

  const at::Tensor nine = at::zeros({1, 16, 2, 9}, at::kInt), ten = at::zeros({1, 16, 2, 10}, at::kInt);
  EXPECT_EQ(reasons_of(split_k, {.query = query, .key = nine, .value = ten}),
            (Reasons{"value.size(-1) is 10, expected 9 like the key's"}));
  const Call plain = call_of(at::kHalf);
  AttentionRequest request = plain.request();
  request.num_groups = 2;
  EXPECT_EQ(reasons_of(split_k, request), (Reasons{"NUM_GROUPS is 2, expected 1 for keys that are not int4"}));
}

TEST(Reasons, ShapesAlone) {
  const auto of = [](const char* key, int64_t head_dim, int64_t head_dim_v) {
    return shape_not_supported_reasons(find_contract(key), 16, 16, head_dim, head_dim_v);
  };
  EXPECT_EQ(of("cutlassF", 65537, 8), (Reasons{"head_dim is 65537, expected 65536 or less"}));
  EXPECT_EQ(of("fa3F", 96, 96), (Reasons{"head_dim is 96, expected 64, 128 or 256"}));
  EXPECT_EQ(of("fa3F", 256, 256), Reasons{});
  EXPECT_EQ(of("fa3B", 256, 256),
            (Reasons{"head_dim is 256, expected 128 or less", "head_dim is 256, expected 64 or 128"}));
  EXPECT_EQ(of("fa3B", 96, 96), (Reasons{"head_dim is 96, expected 64 or 128"}));
  EXPECT_EQ(of("triton_splitKF", 72, 72), Reasons{});
  EXPECT_EQ(of("triton_splitKF", 20, 20), (Reasons{"head_dim is 20, expected a multiple of 8"}));
}

TEST(Reasons, PartialAttention) {
  const Call call = call_of(at::kFloat);
  AttentionRequest request = call.request();
  request.partial = true;
  EXPECT_EQ(reasons_of("cutlassF", request), Reasons{});
  EXPECT_EQ(reasons_of("genericF", request), Reasons{});
  EXPECT_NE(std::ranges::count(reasons_of("ckF", request), "this operator has no partial attention"), 0);
}

}  // namespace
}  // namespace xformers::ops
