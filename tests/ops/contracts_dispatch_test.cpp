// Which operator is chosen where none is named, and which forward goes with which backward.
#include <gtest/gtest.h>

#include "tests/ops/contract_check.h"
#include "xformers/kernels/base/error.h"
#include "xformers/ops/attention/contracts/dispatch.h"

namespace xformers::ops {
namespace {

using Keys = std::vector<std::string>;

Keys order(const AttentionRequest& request, const DispatchOptions& options = {}) {
  Keys keys;
  for (const Contract* contract : dispatch_order(request, options)) keys.emplace_back(contract->key);
  return keys;
}

// One key and value head shared by all.
Call decoding(int64_t batch, int64_t seqlen_q, int64_t seqlen_k, int64_t heads, bool shared = true) {
  at::Tensor key = at::zeros({batch, seqlen_k, shared ? 1 : heads, 16}, at::kHalf).expand({-1, -1, heads, -1});
  return {at::zeros({batch, seqlen_q, heads, 16}, at::kHalf), key, key};
}

TEST(DispatchOrder, Forward) {
  const Call call = call_of(at::kHalf);
  EXPECT_EQ(order(call.request()), (Keys{"fa2F", "cutlassF", "triton_splitKF", "genericF"}));
  EXPECT_EQ(order(call.request(), {.use_fa3 = true}), (Keys{"fa3F", "fa2F", "cutlassF", "triton_splitKF", "genericF"}));
}

TEST(DispatchOrder, Backward) {
  const Call call = call_of(at::kHalf);
  EXPECT_EQ(order(call.request(), {.backward = true, .use_fa3 = true}), (Keys{"fa2B", "cutlassB", "genericB"}));
}

TEST(DispatchOrder, Decoding) {
  const Keys split_second{"fa2F", "triton_splitKF", "cutlassF", "genericF"};
  const Keys usual{"fa2F", "cutlassF", "triton_splitKF", "genericF"};
  const Call call = decoding(1, 8, 2048, 32);
  EXPECT_EQ(order(call.request()), split_second);
  EXPECT_EQ(order(call.request(), {.use_fa3 = true}), split_second);
  EXPECT_EQ(order(call.request(), {.needs_gradient = true}), usual);
  AttentionRequest partial = call.request();
  partial.partial = true;
  EXPECT_EQ(order(partial), usual);
  for (const Call& other : {decoding(1, 8, 2048, 32, /*shared=*/false), decoding(1, 128, 2048, 32),
                            decoding(128, 8, 2048, 32), decoding(1, 8, 128, 32), decoding(2, 1, 256, 32)}) {
    EXPECT_EQ(order(other.request()), usual);
  }
  const Call flat{at::zeros({1, 8, 16}, at::kHalf), at::zeros({1, 512, 16}, at::kHalf),
                  at::zeros({1, 512, 16}, at::kHalf)};
  EXPECT_EQ(order(flat.request()), usual);
}

TEST(DispatchOrder, DecodingOfPackedSequencesCountsEachOfThem) {
  const Call call = decoding(1, 33, 33 * 512, 1 + 1);
  AttentionRequest request = call.request();
  request.bias = "BlockDiagonalMask";
  request.seqlens_q = std::vector<int64_t>(11, 3);
  request.seqlens_k = std::vector<int64_t>(11, 3 * 512);
  EXPECT_EQ(order(request), (Keys{"triton_splitKF", "fa2F", "cutlassF", "genericF"}));
  EXPECT_EQ(order(request, {.use_fa3 = true}), (Keys{"triton_splitKF", "fa3F", "fa2F", "cutlassF", "genericF"}));
  request.bias = "BlockDiagonalPaddedKeysMask";
  EXPECT_EQ(order(request), (Keys{"fa2F", "triton_splitKF", "cutlassF", "genericF"}));
  request.seqlens_k = std::vector<int64_t>(11, 255);
  EXPECT_EQ(order(request), (Keys{"fa2F", "cutlassF", "triton_splitKF", "genericF"}));
}

TEST(Dispatch, TakesTheFirstWithoutReasons) {
  const auto key_of = [](const Call& call, const char* bias = "None", const DispatchOptions& options = {}) {
    AttentionRequest request = call.request();
    request.bias = bias;
    return std::string(dispatch(request, options).key);
  };
  EXPECT_EQ(key_of(call_of(at::kHalf)), "fa2F");
  EXPECT_EQ(key_of(call_of(at::kFloat)), "cutlassF");
  EXPECT_EQ(key_of(call_of(at::kDouble)), "genericF");
  EXPECT_EQ(key_of(call_of(at::kHalf, 16, 16, 512)), "cutlassF");
  EXPECT_EQ(key_of(call_of(at::kHalf), "Tensor"), "cutlassF");
  EXPECT_EQ(key_of(call_of(at::kHalf), "MyMask"), "genericF");
  EXPECT_EQ(key_of(call_of(at::kHalf), "LowerTriangularMask", {.backward = true}), "fa2B");
  EXPECT_EQ(key_of(call_of(at::kHalf, 8, 16), "LowerTriangularMask", {.backward = true}), "cutlassB");
  EXPECT_EQ(key_of(call_of(at::kHalf), "BlockDiagonalPaddedKeysMask", {.backward = true}), "genericB");
  EXPECT_EQ(key_of(call_of(at::kHalf), "None", {.use_fa3 = true}), "fa3F");
}

TEST(Dispatch, Int4GroupsAreReadFromTheShape) {
  const at::Tensor rows = at::zeros({1, 16, 2, 12}, at::kInt), query = at::zeros({1, 4, 2, 64}, at::kHalf);
  EXPECT_STREQ(dispatch({.query = query, .key = rows, .value = rows}, {}).key, "triton_splitKF");
}

// Sequences of different lengths in deterministic mode: flash has no backward then, and cutlass another format.
TEST(Dispatch, ForwardKnowsWhatTheBackwardCanDo) {
  const Call call = call_of(at::kHalf);
  AttentionRequest request = call.request();
  request.bias = "BlockDiagonalMask";
  request.seqlens_q = request.seqlens_k = {10, 6};
  EXPECT_STREQ(dispatch(request, {.needs_gradient = true}).key, "fa2F");
  at::globalContext().setDeterministicAlgorithms(true, /*warn_only=*/false);
  const Contract& forward = dispatch(request, {.needs_gradient = true});
  const Contract& backward = dispatch(request, {.backward = true, .pair_with = &forward});
  at::globalContext().setDeterministicAlgorithms(false, false);
  EXPECT_TRUE(backward.deterministic);
  EXPECT_EQ(forward.packed_lse, backward.packed_lse);
}

TEST(Dispatch, DropoutKeepsToOneBackend) {
  const at::Tensor x = at::zeros({1, 16, 2, 3, 64}, at::kHalf);  // flash and cutlass have no backward of groups
  AttentionRequest request{.query = x, .key = x, .value = x};
  request.p = 0.5;
  EXPECT_STREQ(dispatch(request, {}).key, "fa2F");
  EXPECT_STREQ(dispatch(request, {.needs_gradient = true}).key, "genericF");
  EXPECT_STREQ(dispatch(request, {.backward = true, .pair_with = &find_contract("genericF")}).key, "genericB");
}

TEST(Dispatch, PairsWithAChosenOperator) {
  const Call call = call_of(at::kHalf);
  AttentionRequest request = call.request();
  request.bias = "BlockDiagonalMask";
  request.seqlens_q = request.seqlens_k = {10, 6};
  EXPECT_STREQ(dispatch(request, {.pair_with = &find_contract("cutlassB")}).key, "cutlassF");
  EXPECT_STREQ(dispatch(request, {.backward = true, .pair_with = &find_contract("cutlassF")}).key, "cutlassB");
  EXPECT_STREQ(dispatch(request, {.backward = true, .packed_lse = false}).key, "cutlassB");
  EXPECT_STREQ(dispatch(request, {.backward = true, .packed_lse = true}).key, "fa2B");
}

TEST(Dispatch, SaysWhyNothingFits) {
  const Call call = call_of(at::kInt);
  AttentionRequest request = call.request();
  request.p = 0.25;
  try {
    dispatch(request, {.backward = true, .pair_with = &find_contract("cutlassF")});
    FAIL() << "int32 queries were taken";
  } catch (const c10::NotImplementedError& error) {
    const std::string text = error.what_without_backtrace();
    for (const char* part :
         {"memory_efficient_attention_backward: no operator takes these inputs",
          "query [1, 16, 2, 64] int32 cpu · key [1, 16, 2, 64] int32 cpu · value", "attn_bias None · p 0.25",
          "fa2B@2.6.3 does not take them:", "cutlassB does not take them:", "genericB does not take them:",
          "query.dtype is int32, expected fp64, fp32, fp16 or bf16",
          "the operators are cutlassF and fa2B@2.6.3 with dropout, expected forward and backward of the same module"}) {
      EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text);
    }
  }
}

TEST(Dispatch, SaysWhyTheFormatOfTheLogSumExpDoesNotFit) {
  const Call call = call_of(at::kHalf);
  AttentionRequest request = call.request();
  request.bias = "BlockDiagonalPaddedKeysMask";  // genericB alone
  request.seqlens_q = request.seqlens_k = {10, 6};
  try {
    dispatch(request, {.backward = true, .packed_lse = false});
    FAIL() << "a padded log-sum-exp was taken";
  } catch (const c10::NotImplementedError& error) {
    EXPECT_PRED_FORMAT2(testing::IsSubstring,
                        "the log-sum-exp (LSE) of the sequences is padded, expected packed: [1, heads, total]",
                        std::string(error.what_without_backtrace()));
  }
}

TEST(RequireSupported, IsAnErrorWithAllReasons) {
  const Call call = call_of(at::kDouble);
  require_supported(find_contract("genericF"), call.request(), "genericF");
  try {
    require_supported(find_contract("triton_splitKF"), call.request(), "triton_splitK8");
    FAIL() << "fp64 was taken";
  } catch (const Error& error) {
    const std::string text = error.what();
    for (const char* part : {"memory_efficient_attention_forward: operator triton_splitK8 does not take these inputs",
                             "query.dtype is fp64, expected fp16 or bf16", "attn_bias None"}) {
      EXPECT_PRED_FORMAT2(testing::IsSubstring, part, text);
    }
  }
}

TEST(Pairs, FormatsAndRandomStreams) {
  const auto objects = [](const char* forward, const char* backward, double p, int64_t sequences) {
    return pair_objection(find_contract(forward), find_contract(backward), p, sequences).has_value();
  };
  for (const int64_t sequences : {0, 1}) {
    EXPECT_FALSE(objects("cutlassF", "fa2B", 0, sequences));
    EXPECT_FALSE(objects("fa2F", "cutlassB", 0, sequences));
  }
  EXPECT_TRUE(objects("cutlassF", "fa2B", 0, 2));
  EXPECT_TRUE(objects("fa2F", "cutlassB", 0, 3));
  EXPECT_FALSE(objects("fa2F", "genericB", 0, 3));
  EXPECT_FALSE(objects("triton_splitKF", "fa2B", 0, 3));
  EXPECT_TRUE(objects("cutlassF", "fa2B", 0.5, 0));
  EXPECT_FALSE(objects("fa2F", "fa2B", 0.5, 5));
}

}  // namespace
}  // namespace xformers::ops
