// Parameters that no kernel should see are refused with a sentence that says what to do, before any memory is touched:
// the outputs here are still NaN afterwards.
#include <cmath>
#include <functional>
#include <type_traits>

#include "tests/kernels/attention_check.h"
#include "xformers/kernels/base/error.h"

namespace xformers::testing {
namespace {

// Runs forward and backward with changed parameters and expects both to throw.
void expect_refused(const std::function<void(AttentionShape&, SeqLayout&, MaskBand&, Dropout&)>& spoil) {
  AttentionRun run(parse_attention_case("attention:fp32,q4,k5,h2,d8"));
  AttentionFwdParams forward = run.forward_params();
  AttentionBwdParams backward = run.backward_params();
  spoil(forward.shape, forward.seq, forward.band, forward.dropout);
  spoil(backward.shape, backward.seq, backward.band, backward.dropout);
  const auto expect_error = [](const std::function<void()>& call) {
    try {
      call();
      ADD_FAILURE() << "was accepted";
    } catch (const Error& error) {
      EXPECT_NE(std::string(error.what()).find("Fix: "), std::string::npos) << error.what();
    }
  };
  expect_error([&] { cpu::attention_forward(forward, {1, nullptr}); });
  expect_error([&] { cpu::attention_backward(backward, {1, nullptr}); });
  for (const StridedTensor* t : {&run.out, &run.lse, &run.dq, &run.dk, &run.dv}) {
    for (double x : t->values()) ASSERT_TRUE(std::isnan(x));
  }
}

}  // namespace

TEST(AttentionErrors, NegativeSize) {
  expect_refused([](AttentionShape& shape, auto&...) { shape.seqlen_k = -1; });
  expect_refused([](AttentionShape& shape, auto&...) { shape.heads_per_group = -2; });
}

TEST(AttentionErrors, NoHeadDim) {
  expect_refused([](AttentionShape& shape, auto&...) { shape.head_dim = 0; });
  expect_refused([](AttentionShape& shape, auto&...) { shape.head_dim_v = 0; });
}

TEST(AttentionErrors, WindowBelowUnbounded) {
  expect_refused([](AttentionShape&, SeqLayout&, MaskBand& band, Dropout&) { band.window_left = -2; });
}

TEST(AttentionErrors, DropoutOutsideOfItsRange) {
  for (double p : {-0.1, 1.5, std::nan("")}) {
    expect_refused([p](AttentionShape&, SeqLayout&, MaskBand&, Dropout& dropout) { dropout.p = p; });
  }
}

TEST(AttentionErrors, PackedSequencesInABatch) {
  static constexpr int32_t kOffsets[] = {0, 4};
  expect_refused([](AttentionShape& shape, SeqLayout& seq, auto&...) {
    shape.batch = 2;
    seq = {1, kOffsets, kOffsets, nullptr, {}};
  });
}

TEST(AttentionErrors, PackedQueriesWithoutKeys) {
  static constexpr int32_t kOffsets[] = {0, 4};
  expect_refused([](AttentionShape&, SeqLayout& seq, auto&...) { seq = {1, kOffsets, nullptr, nullptr, {}}; });
}

namespace {

// One direction with changed parameters.
template <class Params>
void expect_error(const Params& params, const std::function<void(Params&)>& spoil) {
  Params spoiled = params;
  spoil(spoiled);
  const auto run = [&] {
    if constexpr (std::is_same_v<Params, AttentionFwdParams>) {
      cpu::attention_forward(spoiled, {1, nullptr});
    } else {
      cpu::attention_backward(spoiled, {1, nullptr});
    }
  };
  try {
    run();
    ADD_FAILURE() << "was accepted";
  } catch (const Error& error) {
    EXPECT_NE(std::string(error.what()).find("Fix: "), std::string::npos) << error.what();
  }
}

}  // namespace

TEST(AttentionErrors, Pages) {
  const AttentionRun run(parse_attention_case("attention:fp32,q1+2,used20+30,page16,h2,d8"));
  using P = AttentionFwdParams;
  expect_error<P>(run.forward_params(), [](P& p) { p.seq.pages.page_size = 0; });
  expect_error<P>(run.forward_params(), [](P& p) { p.seq.pages.page_size = -16; });
  expect_error<P>(run.forward_params(), [](P& p) { p.seq.pages.max_pages = -1; });
  expect_error<P>(run.forward_params(), [](P& p) { p.seq.seqused_k = nullptr; });
  expect_error<P>(run.forward_params(), [](P& p) { p.seq.cu_seqlens_q = nullptr; });
  expect_error<AttentionBwdParams>(run.backward_params(), [](auto&) {});
  for (double x : run.out.values()) ASSERT_TRUE(std::isnan(x));
}

TEST(AttentionErrors, Quantization) {
  using P = AttentionFwdParams;
  const AttentionRun int4(parse_attention_case("attention:fp32,q1,k20,h2,d32,int4_2"));
  expect_error<P>(int4.forward_params(), [](P& p) { p.quantization.num_groups = 3; });
  expect_error<P>(int4.forward_params(), [](P& p) { p.quantization.num_groups = 0; });
  expect_error<P>(int4.forward_params(), [](P& p) { p.shape.head_dim = 28; });
  const AttentionRun fp8(parse_attention_case("attention:fp32,q1,k20,h2,d32,fp8"));
  expect_error<P>(fp8.forward_params(), [](P& p) { p.shape.head_dim_v = 30; });
  expect_error<P>(fp8.forward_params(), [](P& p) { p.quantization.v_scale_shift.data = nullptr; });
  expect_error<P>(fp8.forward_params(), [](P& p) { p.quantization.k_scale_shift = p.quantization.v_scale_shift = {}; });
}

TEST(AttentionErrors, NegativeSplits) {
  const AttentionRun run(parse_attention_case("attention:fp32,q1,k20,h2,d32"));
  expect_error<AttentionFwdParams>(run.forward_params(), [](auto& p) { p.num_splits = -1; });
}

}  // namespace xformers::testing
