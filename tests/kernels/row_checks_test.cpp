// What the kernels around attention refuse, the same on both devices; dispatch over what is unknown; the divider.
#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/base/divide.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/base/half.h"
#include "xformers/kernels/cpu/norm/norm_cpu.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::testing {
namespace {

// The sentence that refuses, "" where nothing is.
template <class Call>
std::string refusal(const Call& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "";
}

char memory[64];
const Rows kSome{memory, 4};

NormFwdParams norm(DType dtype, DType weight_dtype) {
  return {.shape = {dtype, NormKind::kRms, 1, 4, 1e-5},
          .x = kSome,
          .increment = {},
          .weight = memory,
          .weight_dtype = weight_dtype,
          .out = kSome};
}

TEST(RowChecks, WeightsOfAnotherType) {
  constexpr DType kFloat = DType::kFloat32, kBrain = DType::kBFloat16, kHalf = DType::kFloat16;
  for (const WeightTypes taken : {WeightTypes::kCompute, WeightTypes::kAlsoOfRows}) {
    EXPECT_EQ(refusal([&] { check(norm(kFloat, kFloat), taken); }), "");
    EXPECT_EQ(refusal([&] { check(norm(kBrain, kFloat), taken); }), "");
    EXPECT_EQ(refusal([&] { check(norm(kBrain, kBrain), taken); }).empty(), taken == WeightTypes::kAlsoOfRows);
    for (const auto& [rows, weight] :
         {std::pair(kFloat, kBrain), std::pair(kHalf, kBrain), std::pair(DType::kFloat64, kFloat)}) {
      const std::string sentence = refusal([&] { check(norm(rows, weight), taken); });
      EXPECT_NE(sentence.find(name_of(rows)), std::string::npos) << sentence;
      EXPECT_NE(sentence.find(name_of(weight)), std::string::npos) << sentence;
    }
  }
  EXPECT_NE(refusal([&] { cpu::norm_forward(norm(kBrain, kBrain), {1, nullptr}); }), "");
  NormFwdParams none = norm(kFloat, kBrain);
  none.weight = nullptr;
  EXPECT_EQ(refusal([&] { check(none, WeightTypes::kCompute); }), "");
  const BiasActDropoutFwdParams fused{.shape = {.dtype = kFloat,
                                                .rows = 1,
                                                .width = 4,
                                                .activation = Activation::kRelu,
                                                .dropout = {},
                                                .bias_dtype = kBrain},
                                      .x = kSome,
                                      .bias = memory,
                                      .residual = {},
                                      .out = kSome};
  EXPECT_EQ(refusal([&] { check(fused, WeightTypes::kAlso16Bit); }), "");
  EXPECT_NE(refusal([&] { check(fused, WeightTypes::kCompute); }), "");
}

TEST(RowChecks, WhatDoesNotGoTogether) {
  const auto refused = [](const NormFwdParams& p) {
    return !refusal([&] { check(p, WeightTypes::kCompute); }).empty();
  };
  NormFwdParams p = norm(DType::kFloat32, DType::kFloat32);
  EXPECT_FALSE(refused(p));
  p.bias = memory;
  EXPECT_TRUE(refused(p)) << "a bias of an RMS norm";
  p.shape.kind = NormKind::kLayer;
  EXPECT_FALSE(refused(p));
  p.increment = kSome;
  EXPECT_TRUE(refused(p)) << "an increment of a layer norm";
  p = norm(DType::kFloat32, DType::kFloat32);
  p.shape.dtype = static_cast<DType>(7);
  EXPECT_TRUE(refused(p));
  p = norm(DType::kFloat32, DType::kFloat32);
  p.out = {};
  EXPECT_TRUE(refused(p));
  p.shape.rows = 0;
  EXPECT_FALSE(refused(p)) << "nothing to do";
  p.shape.rows = -1;
  EXPECT_TRUE(refused(p));
}

TEST(Dispatch, RefusesWhatItDoesNotKnow) {
  int calls = 0;
  const auto count = [&](auto) { ++calls; };
  for (const DType dtype : kBlockDTypes) dispatch_dtype<BFloat16, Float16>(dtype, count);
  EXPECT_EQ(calls, 4);
  EXPECT_THROW((dispatch_dtype<BFloat16, Float16>(static_cast<DType>(4), count)), Error);
  EXPECT_THROW(with_activation(static_cast<Activation>(8), [&]<Activation>() { ++calls; }), Error);
  EXPECT_EQ(calls, 4);
}

template <class N>
void divide_all() {
  constexpr int64_t kLast = sizeof(N) == 4 ? 0x7fffffff : 0x7fffffffffffffff;
  std::vector<int64_t> numbers = {0,   1,    2,     3,     5,     7,         10,        127,
                                  641, 1000, 65535, 65536, 65537, kLast / 3, kLast - 1, kLast};
  for (int bit = 8; bit < 62 && (int64_t{1} << bit) < kLast; bit += 3) {
    for (int64_t off : {-1, 0, 1}) numbers.push_back((int64_t{1} << bit) + off);
  }
  for (const int64_t size : numbers) {
    if (size == 0) continue;
    const Divisor<N> divisor(size);
    EXPECT_EQ(static_cast<int64_t>(divisor.size()), size);
    for (const int64_t near : numbers) {
      for (const int64_t n : {near, near / size * size, near / size * size - 1}) {
        if (n < 0) continue;
        const auto [quotient, rest] = divisor.divide(static_cast<N>(n));
        EXPECT_EQ(static_cast<int64_t>(quotient), n / size) << n << " / " << size;
        EXPECT_EQ(static_cast<int64_t>(rest), n % size) << n << " / " << size;
      }
    }
  }
}

TEST(Divisor, IsExact) {
  divide_all<uint32_t>();
  divide_all<int64_t>();
}

}  // namespace
}  // namespace xformers::testing
