// The merge kernel against its formula in fp64, for every combination of element types.
#include <gtest/gtest.h>

#include <cmath>
#include <limits>
#include <random>
#include <vector>

#include "xformers/kernels/base/half.h"
#include "xformers/kernels/cpu/merge/merge_cpu.h"

namespace xformers {
namespace {

constexpr int64_t kBatch = 2, kSeqlen = 3, kGroups = 2, kHeads = 2, kDim = 5, kParts = 3;
constexpr int64_t kRows = kBatch * kSeqlen * kGroups * kHeads;
constexpr double kInfinity = std::numeric_limits<double>::infinity();

// Numbers of any element type.
struct Buffer {
  DType dtype;
  std::vector<char> bytes;

  Buffer(DType type, int64_t count) : dtype(type), bytes(count * size_of(type), '\x7f') {}  // NaN or huge

  double get(int64_t i) const {
    switch (dtype) {
      case DType::kFloat32: return reinterpret_cast<const float*>(bytes.data())[i];
      case DType::kFloat64: return reinterpret_cast<const double*>(bytes.data())[i];
      case DType::kBFloat16: return to_float(reinterpret_cast<const BFloat16*>(bytes.data())[i]);
      case DType::kFloat16: return to_float(reinterpret_cast<const Float16*>(bytes.data())[i]);
    }
    return 0;
  }
  void set(int64_t i, double x) {
    switch (dtype) {
      case DType::kFloat32: reinterpret_cast<float*>(bytes.data())[i] = static_cast<float>(x); break;
      case DType::kFloat64: reinterpret_cast<double*>(bytes.data())[i] = x; break;
      case DType::kBFloat16: reinterpret_cast<BFloat16*>(bytes.data())[i] = to_bfloat16(static_cast<float>(x)); break;
      case DType::kFloat16: reinterpret_cast<Float16*>(bytes.data())[i] = to_float16(static_cast<float>(x)); break;
    }
  }
  HeadsTensor rows(int64_t dim) {  // [batch, seqlen, groups, heads, dim], contiguous
    return {bytes.data(), kSeqlen * kGroups * kHeads * dim, kGroups * kHeads * dim, kHeads * dim, dim};
  }
};

double tolerance(DType dtype) {
  switch (dtype) {
    case DType::kFloat32: return 1e-5;
    case DType::kFloat64: return 1e-12;
    case DType::kBFloat16: return 2e-2;
    case DType::kFloat16: return 3e-3;
  }
  return 0;
}

struct Problem {
  MergeShape shape;
  std::vector<Buffer> attn, lse, grad_attn, grad_lse;
  std::vector<MergePart> parts, grads;

  Problem(DType dtype, DType out_dtype, DType lse_dtype) {
    shape = {dtype, out_dtype, lse_dtype, kParts, kBatch, kSeqlen, kGroups, kHeads, kDim};
    std::mt19937 random(1);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < kParts; ++i) {
      attn.emplace_back(dtype, kRows * kDim);
      lse.emplace_back(lse_dtype, kRows);
      for (int64_t r = 0; r < kRows; ++r) {
        // Row 1: part 0 saw no key, and its out stays NaN. Row 2: no part did.
        const bool blind = (r == 1 && i == 0) || r == 2;
        lse[i].set(r, blind ? -kInfinity : 3 * normal(random));
        for (int64_t d = 0; d < kDim; ++d) attn[i].set(r * kDim + d, blind ? std::nan("") : normal(random));
      }
      grad_attn.emplace_back(dtype, kRows * kDim);
      grad_lse.emplace_back(lse_dtype, kRows);
    }
    for (int64_t i = 0; i < kParts; ++i) {
      parts.push_back({attn[i].rows(kDim), lse[i].rows(1)});
      grads.push_back({grad_attn[i].rows(kDim), grad_lse[i].rows(1)});
    }
  }

  double total(int64_t row) const {
    double sum = 0;
    for (const Buffer& x : lse) sum += std::exp(x.get(row));
    return std::log(sum);
  }
  double weight(int64_t part, int64_t row) const {
    return lse[part].get(row) == -kInfinity ? 0 : std::exp(lse[part].get(row) - total(row));
  }
  double term(int64_t part, int64_t row, int64_t d) const {  // W out of a part
    return weight(part, row) == 0 ? 0 : weight(part, row) * attn[part].get(row * kDim + d);
  }
};

constexpr DType kAll[] = {DType::kFloat32, DType::kFloat64, DType::kBFloat16, DType::kFloat16};

template <class Fn>
void for_each_combination(const Fn& fn) {
  for (const DType dtype : kAll) {
    for (const DType out_dtype : kAll) {
      for (const DType lse_dtype : {DType::kFloat32, DType::kFloat64}) {
        SCOPED_TRACE(std::string(name_of(dtype)) + " -> " + name_of(out_dtype) + ", lse " + name_of(lse_dtype));
        fn(Problem(dtype, out_dtype, lse_dtype), lse_dtype == DType::kFloat32 ? 1e-5 : 0);
      }
    }
  }
}

TEST(Merge, Forward) {
  for_each_combination([](Problem p, double lse_rounding) {
    Buffer out(p.shape.out_dtype, kRows * kDim), lse(p.shape.lse_dtype, kRows);
    const MergeFwdParams params{p.shape, p.parts.data(), out.rows(kDim), lse.rows(1)};
    cpu::merge_forward(params, {.num_threads = 2});
    const double bound = tolerance(p.shape.out_dtype) + lse_rounding + (p.shape.dtype == DType::kFloat64 ? 0 : 1e-5);
    for (int64_t r = 0; r < kRows; ++r) {
      if (r == 2) {
        EXPECT_EQ(lse.get(r), -kInfinity);
      } else {
        EXPECT_NEAR(lse.get(r), p.total(r), 1e-12 + lse_rounding);
      }
      for (int64_t d = 0; d < kDim; ++d) {
        double expected = 0;
        for (int64_t i = 0; i < kParts; ++i) expected += p.term(i, r, d);
        EXPECT_NEAR(out.get(r * kDim + d), expected, bound) << "row " << r;
      }
    }
    Buffer alone(p.shape.out_dtype, kRows * kDim);
    cpu::merge_forward({p.shape, p.parts.data(), alone.rows(kDim), {}}, {.num_threads = 1});
    EXPECT_EQ(alone.bytes, out.bytes);
  });
}

TEST(Merge, Backward) {
  for_each_combination([](Problem p, double lse_rounding) {
    Buffer dout(p.shape.out_dtype, kRows * kDim), dlse(p.shape.lse_dtype, kRows);
    std::mt19937 random(2);
    std::normal_distribution<double> normal;
    for (int64_t i = 0; i < kRows * kDim; ++i) dout.set(i, normal(random));
    for (int64_t i = 0; i < kRows; ++i) dlse.set(i, normal(random));
    const double bound = tolerance(p.shape.dtype) + lse_rounding + (p.shape.dtype == DType::kFloat64 ? 0 : 1e-5);
    for (const bool with_dlse : {true, false}) {
      cpu::merge_backward(
          {p.shape, p.parts.data(), dout.rows(kDim), with_dlse ? dlse.rows(1) : HeadsTensor(), p.grads.data()},
          {.num_threads = 2});
      for (int64_t r = 0; r < kRows; ++r) {
        double mean = 0;  // <out, dout>
        for (int64_t i = 0; i < kParts; ++i) {
          for (int64_t d = 0; d < kDim; ++d) mean += p.term(i, r, d) * dout.get(r * kDim + d);
        }
        for (int64_t i = 0; i < kParts; ++i) {
          const double weight = p.weight(i, r);
          double dot = 0;
          for (int64_t d = 0; d < kDim; ++d) {
            EXPECT_NEAR(p.grad_attn[i].get(r * kDim + d), weight * dout.get(r * kDim + d), bound);
            dot += p.term(i, r, d) * dout.get(r * kDim + d);  // W <out_i, dout>
          }
          const double expected = dot + weight * ((with_dlse ? dlse.get(r) : 0) - mean);
          EXPECT_NEAR(p.grad_lse[i].get(r), expected, 1e-5 + lse_rounding) << "row " << r << " part " << i;
        }
      }
    }
  });
}

}  // namespace
}  // namespace xformers
