// The memory-bound kernels without LibTorch: every instruction set and element type against plain loops in double, with
// widths around the vector sizes, in memory that ends where the rows end.
#include <array>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/indexing/indexing_cpu.h"
#include "xformers/kernels/cpu/norm/norm_cpu.h"
#include "xformers/kernels/cpu/rope/rope_cpu.h"
#include "xformers/kernels/cpu/swiglu/gate_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kRows = 5;
constexpr std::array<int64_t, 7> kWidths = {1, 2, 15, 16, 33, 64, 250};
const cpu::Threads kThreads{2, nullptr};

std::string label(const std::string& isa, DType dtype, int64_t width) {
  return isa + " " + name_of(dtype) + " width " + std::to_string(width);
}

// body(dtype, width, label) for all combinations.
template <class Body>
void for_each_case(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (int64_t width : kWidths) body(dtype, width, label(isa, dtype, width));
    }
  });
}

TEST(MemoryBoundKernels, Norm) {
  for_each_case([](DType dtype, int64_t width, const std::string& where) {
    for (NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
      RowBuffer x(dtype, kRows, width), out(dtype, kRows, width), weight(compute_of(dtype), 1, width);
      x.randomise(1);
      weight.randomise(2);
      cpu::norm_forward({.shape = {dtype, kind, kRows, width, 1e-5},
                         .x = {x.data(), width},
                         .increment = {},
                         .weight = weight.data(),
                         .bias = nullptr,
                         .out = {out.data(), width}},
                        kThreads);
      for (int64_t row = 0; row < kRows; ++row) {
        double mean = 0, square = 0;
        for (int64_t i = 0; kind == NormKind::kLayer && i < width; ++i) mean += x.get(row, i) / double(width);
        for (int64_t i = 0; i < width; ++i) square += std::pow(x.get(row, i) - mean, 2) / double(width);
        const double scale = 1 / std::sqrt(square + 1e-5);
        for (int64_t i = 0; i < width; ++i) {
          expect_near(dtype, out.get(row, i), (x.get(row, i) - mean) * scale * weight.get(0, i), 4 * scale, where);
        }
      }
    }
  });
}

TEST(MemoryBoundKernels, NormBackward) {
  for_each_case([](DType dtype, int64_t width, const std::string& where) {
    RowBuffer x(dtype, kRows, width), dout(dtype, kRows, width), dx(dtype, kRows, width);
    RowBuffer weight(compute_of(dtype), 1, width), dweight(compute_of(dtype), 1, width);
    x.randomise(1);
    dout.randomise(2);
    weight.randomise(3);
    cpu::norm_backward({.shape = {dtype, NormKind::kRms, kRows, width, 1e-5},
                        .x = {x.data(), width},
                        .dout = {dout.data(), width},
                        .weight = weight.data(),
                        .dx = {dx.data(), width},
                        .dweight = dweight.data(),
                        .dbias = nullptr},
                       kThreads);
    std::vector<double> sums(width, 0.0);
    for (int64_t row = 0; row < kRows; ++row) {
      double square = 0, dot = 0;
      for (int64_t i = 0; i < width; ++i) {
        square += x.get(row, i) * x.get(row, i) / double(width);
        dot += x.get(row, i) * weight.get(0, i) * dout.get(row, i) / double(width);
      }
      const double scale = 1 / std::sqrt(square + 1e-5);
      for (int64_t i = 0; i < width; ++i) {
        const double expected =
            scale * weight.get(0, i) * dout.get(row, i) - x.get(row, i) * scale * scale * scale * dot;
        expect_near(dtype, dx.get(row, i), expected, 16 * scale, where);
        sums[i] += dout.get(row, i) * x.get(row, i) * scale;
      }
    }
    for (int64_t i = 0; i < width; ++i) expect_near(compute_of(dtype), dweight.get(0, i), sums[i], 16, where);
  });
}

// Rows whose squares overflow or vanish in the compute type: results are those of the rows brought near 1, and dx that
// of those times the same factor.
TEST(MemoryBoundKernels, NormOfNumbersWhoseSquaresDoNotFit) {
  for_each_case([](DType dtype, int64_t width, const std::string& where) {
    if (dtype == DType::kFloat16 || width == 1) return;
    const bool wide = dtype == DType::kFloat64;
    for (const int exponent : wide ? std::vector{520, 1000, -520} : std::vector{66, 100, 122, -80}) {
      for (NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
        const double factor = std::ldexp(1.0, exponent);
        const bool centred = kind == NormKind::kLayer;
        RowBuffer x(dtype, kRows, width), dout(dtype, kRows, width), out(dtype, kRows, width), dx(dtype, kRows, width);
        RowBuffer dweight(compute_of(dtype), 1, width);
        x.randomise(1);
        dout.randomise(2);
        for (int64_t i = 0; i < x.count(); ++i) x.set(i, x.get(i) * factor);
        const NormShape shape{dtype, kind, kRows, width, 0};
        cpu::norm_forward({.shape = shape, .x = {x.data(), width}, .increment = {}, .out = {out.data(), width}},
                          kThreads);
        cpu::norm_backward({.shape = shape,
                            .x = {x.data(), width},
                            .dout = {dout.data(), width},
                            .dx = {dx.data(), width},
                            .dweight = dweight.data()},
                           kThreads);
        std::vector<double> sums(width, 0.0);
        for (int64_t row = 0; row < kRows; ++row) {
          const auto at = [&](int64_t i) { return x.get(row, i) / factor; };
          double mean = 0, square = 0, g_mean = 0, dot = 0;
          for (int64_t i = 0; centred && i < width; ++i) {
            mean += at(i) / double(width);
            g_mean += dout.get(row, i) / double(width);
          }
          for (int64_t i = 0; i < width; ++i) square += std::pow(at(i) - mean, 2) / double(width);
          const double scale = 1 / std::sqrt(square);
          for (int64_t i = 0; i < width; ++i) dot += dout.get(row, i) * (at(i) - mean) * scale / double(width);
          for (int64_t i = 0; i < width; ++i) {
            const double z = (at(i) - mean) * scale, expected = scale * (dout.get(row, i) - z * dot - g_mean);
            expect_near(dtype, out.get(row, i), z, 16 * scale, where);
            // Some processors turn what is below 2^-126, subnormal in bf16, into 0.
            const double last = (dtype == DType::kBFloat16 ? 0x1p-126 : 0x1p-133) * factor * 0x1p20;
            expect_near(dtype, dx.get(row, i) * factor, expected, 64 * scale * (1 + scale) + (wide ? 0 : last), where);
            sums[i] += dout.get(row, i) * z;
          }
        }
        for (int64_t i = 0; i < width; ++i) expect_near(compute_of(dtype), dweight.get(0, i), sums[i], 256, where);
      }
    }
  });
}

TEST(MemoryBoundKernels, Gate) {
  for_each_case([](DType dtype, int64_t width, const std::string& where) {
    RowBuffer x1(dtype, kRows, width), x2(dtype, kRows, width), h(dtype, kRows, width), dh(dtype, kRows, width);
    RowBuffer dx1(dtype, kRows, width), dx2(dtype, kRows, width), again(dtype, kRows, width);
    x1.randomise(1);
    x2.randomise(2);
    dh.randomise(3);
    for (int64_t i = 0; i < x1.count(); ++i) x1.set(i, x1.get(i) * 20);
    const auto rows = [&](const RowBuffer& buffer) { return Rows{buffer.data(), width}; };
    cpu::gate_forward({dtype, kRows, width, rows(x1), rows(x2), rows(h)}, kThreads);
    cpu::gate_backward({dtype, kRows, width, rows(x1), rows(x2), rows(dh), rows(dx1), rows(dx2), rows(again)},
                       kThreads);
    for (int64_t i = 0; i < x1.count(); ++i) {
      const double s = 1 / (1 + std::exp(-x1.get(i))), silu = x1.get(i) * s;
      expect_near(dtype, h.get(i), silu * x2.get(i), 0, where);
      expect_near(dtype, dx2.get(i), silu * dh.get(i), 0, where);
      expect_near(dtype, dx1.get(i), dh.get(i) * x2.get(i) * s * (1 + x1.get(i) * (1 - s)), 8, where);
      EXPECT_EQ(again.get(i), h.get(i)) << where;
    }
  });
}

TEST(MemoryBoundKernels, Indexing) {
  const std::vector<int64_t> index = {3, 0, 3};
  for_each_case([&](DType dtype, int64_t width, const std::string& where) {
    RowBuffer source(dtype, kRows, width), packed(dtype, 3, width), sums(dtype, kRows, width);
    source.randomise(1);
    RowSelection selection{source.data(), width, kRows, width, index.data(), 3, packed.data()};
    cpu::index_select_cat({dtype, &selection, 1}, kThreads);
    for (int64_t i = 0; i < 3; ++i) {
      for (int64_t j = 0; j < width; ++j) EXPECT_EQ(packed.get(i, j), source.get(index[i], j)) << where;
    }
    selection.source = sums.data();
    cpu::index_select_cat_backward({dtype, &selection, 1}, kThreads);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t j = 0; j < width; ++j) {
        const double expected = row == 3 ? packed.get(0, j) + packed.get(2, j) : row == 0 ? packed.get(1, j) : 0;
        expect_near(dtype, sums.get(row, j), expected, 0, where);
      }
    }
    RowBuffer target(dtype, kRows, width), scaling(compute_of(dtype), 1, width);
    target.randomise(4);
    scaling.randomise(5);
    std::vector<double> before;
    for (int64_t i = 0; i < target.count(); ++i) before.push_back(target.get(i));
    cpu::scaled_index_add({.dtype = dtype,
                           .rows = kRows,
                           .num_indices = 3,
                           .middle = 1,
                           .width = width,
                           .input = {target.data(), width, width},
                           .source = {packed.data(), width, width},
                           .index = index.data(),
                           .scaling = scaling.data(),
                           .alpha = 0.5},
                          kThreads);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t j = 0; j < width; ++j) {
        double expected = before[row * width + j];
        for (int64_t i = 0; i < 3; ++i) {
          if (index[i] == row) expected += 0.5 * scaling.get(0, j) * packed.get(i, j);
        }
        expect_near(dtype, target.get(row, j), expected, 4, where);
      }
    }
  });
}

TEST(MemoryBoundKernels, Rotary) {
  for_each_case([](DType dtype, int64_t width, const std::string& where) {
    const int64_t head_dim = 2 * width;
    for (const bool adjacents : {true, false}) {
      for (const bool fp64 : {true, false}) {
        RowBuffer x(dtype, kRows, head_dim), out(dtype, kRows, head_dim);
        x.randomise(1);
        RotaryParams params;
        params.dtype = dtype;
        params.outer = 1;
        params.seqlen = kRows;
        params.head_dim = head_dim;
        params.x = x.data();
        params.out = out.data();
        params.x_seq_stride = params.out_seq_stride = head_dim;
        params.layout = {adjacents, fp64};
        cpu::rotary(params, kThreads);
        for (int64_t s = 0; s < kRows; ++s) {
          for (int64_t j = 0; j < width; ++j) {
            const double angle = double(s) * std::pow(10000.0, -2.0 * double(j) / double(head_dim));
            const int64_t re = adjacents ? 2 * j : j, im = adjacents ? 2 * j + 1 : j + width;
            const double a = x.get(s, re), b = x.get(s, im);
            expect_near(dtype, out.get(s, re), a * std::cos(angle) - b * std::sin(angle), 4, where);
            expect_near(dtype, out.get(s, im), b * std::cos(angle) + a * std::sin(angle), 4, where);
          }
        }
      }
    }
  });
}

TEST(MemoryBoundKernels, IndicesOutOfRangeAreRefusedBeforeAnythingIsWritten) {
  RowBuffer source(DType::kFloat32, 4, 8), packed(DType::kFloat32, 2, 8);
  source.randomise(1);
  for (const int64_t bad : {int64_t{-1}, int64_t{4}, int64_t{1} << 40}) {
    const std::array<int64_t, 2> index = {0, bad};
    const RowSelection selection{source.data(), 8, 4, 8, index.data(), 2, packed.data()};
    EXPECT_THROW(cpu::index_select_cat({DType::kFloat32, &selection, 1}, kThreads), Error);
    EXPECT_TRUE(std::isnan(packed.get(0)));
  }
}

TEST(MemoryBoundKernels, SequencesThatDoNotFitTheCacheAreRefused) {
  RowBuffer tokens(DType::kFloat32, 3, 8), cache(DType::kFloat32, 6, 8), out(DType::kFloat32, 3, 8);
  tokens.randomise(1);
  const RopeTensor packed{tokens.data(), 8, 8, 8}, cached{cache.data(), 8, 8, 8};
  const std::array<int32_t, 2> q_starts = {0, 3}, k_starts = {0, 6};
  RopePaddedParams params;
  params.num_queries = 3;
  params.num_keys = 6;
  params.head_dim = 8;
  params.q = params.k = params.v = packed;
  params.out_q = {out.data(), 8, 8, 8};
  params.cache_k = params.cache_v = cached;
  params.batch = 1;
  params.q_starts = q_starts.data();
  params.k_starts = k_starts.data();
  for (const int32_t length : {2, 7, -1}) {
    params.k_lengths = &length;
    EXPECT_THROW(cpu::rope_padded(params, kThreads), Error);
    EXPECT_TRUE(std::isnan(out.get(0)) && std::isnan(cache.get(0)));
  }
  params.head_dim = 7;
  EXPECT_THROW(cpu::rope_padded(params, kThreads), Error);
}

}  // namespace
}  // namespace xformers::testing
