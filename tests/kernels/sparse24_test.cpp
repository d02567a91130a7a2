// 2:4 sparsity without LibTorch: every vector width and element type against a sort per tile and plain loops in double,
// at sizes around the tiles, in memory that ends where rows end.
#include <algorithm>
#include <array>
#include <memory>
#include <numeric>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/sparse24/sparse24_cpu.h"

namespace xformers::testing {
namespace {

const cpu::Threads kThreads{2, nullptr};
constexpr Sparse24Rule kRules[] = {Sparse24Rule::kLargest, Sparse24Rule::kLargestAbs, Sparse24Rule::kCausal1122};

int64_t to_multiple(int64_t x, int64_t of) { return (x + of - 1) / of * of; }

// Values with ties, zeros of both signs, infinities and NaN.
void fill(RowBuffer& x, uint64_t seed) {
  x.randomise(seed);
  for (int64_t i = 0; i < x.count(); ++i) {
    const double v = x.get(i);
    const auto draw = static_cast<int64_t>(std::abs(v) * 1e6) % 40;
    if (draw < 12) x.set(i, static_cast<double>(draw % 4) - 1.5);
    if (draw == 12) x.set(i, -0.0);
    if (draw == 13) x.set(i, 0.0);
    if (draw == 14) x.set(i, INFINITY);
    if (draw == 15) x.set(i, -INFINITY);
    if (draw == 16) x.set(i, std::copysign(NAN, v));
  }
}

// What the rules keep, by sorting the values of each tile.
std::vector<bool> expected_mask(const RowBuffer& x, int64_t rows, int64_t cols, Sparse24Rule rule) {
  std::vector<bool> mask(static_cast<size_t>(rows * cols));
  struct Place {
    int64_t row, col;
    double value;
  };
  for (int64_t i = 0; i < rows; i += 4) {
    for (int64_t j = 0; j < cols; j += 4) {
      std::vector<Place> places;
      for (int64_t r = i; r < std::min(i + 4, rows); ++r) {
        for (int64_t c = j; c < std::min(j + 4, cols); ++c) {
          const double v = x.get(r, c);
          places.push_back({r, c, rule == Sparse24Rule::kLargestAbs ? std::abs(v) : v});
        }
      }
      const bool causal = rule == Sparse24Rule::kCausal1122;
      std::stable_sort(places.begin(), places.end(), [&](const Place& a, const Place& b) {
        if (causal && a.row != b.row) return a.row < b.row;
        if (std::isnan(a.value) || std::isnan(b.value)) return std::isnan(a.value) && !std::isnan(b.value);
        return a.value > b.value;
      });
      int of_row[4] = {}, of_col[4] = {};
      for (const Place& p : places) {
        if (of_row[p.row - i] == (causal && p.row - i < 2 ? 1 : 2) || of_col[p.col - j] == 2) continue;
        ++of_row[p.row - i];
        ++of_col[p.col - j];
        mask[static_cast<size_t>(p.row * cols + p.col)] = true;
      }
    }
  }
  return mask;
}

// A packed matrix that owns its memory; `square`: in cells of 128 rows and 32 columns.
struct PackedBuffer {
  PackedBuffer(DType dtype, int64_t rows_arg, int64_t cols_arg, bool square = false)
      : rows(to_multiple(rows_arg, 32)),
        cols(to_multiple(cols_arg, 64)),
        values(dtype, rows, cols / 2),
        meta(static_cast<size_t>(rows * cols / 16) * 2) {
    packed = {.values = values.data(),
              .value_stride = cols / 2,
              .meta = reinterpret_cast<uint16_t*>(meta.data()),
              .meta_block = square ? 256 : rows * 2,
              .meta_group = square ? cols / 32 * 256 : 256};
  }
  // The word of 16 columns, found by the rule in words: 32 rows are dealt in eights, then the off-diagonal words of 2 x
  // 2 are swapped.
  int word(int64_t row, int64_t word) const {
    int64_t to = row / 32 * 32 + row % 8 * 4 + row % 32 / 8, column = word;
    if (to % 2 != column % 2) {
      const int64_t down = to % 2 == 0 ? 1 : -1;
      to += down;
      column -= down;
    }
    return packed.meta[column / 2 * rows * 2 + to * 2 + column % 2];
  }

  int64_t rows, cols;
  RowBuffer values;
  GuardedBuffer meta;
  Sparse24Packed packed;
};

bool same(double a, double b) { return std::isnan(a) ? std::isnan(b) : a == b && std::signbit(a) == std::signbit(b); }

// Both slots of any four columns: what is kept, in rising order, padded with zeros; rising indices.
void expect_packed(const PackedBuffer& got, const std::function<double(int64_t, int64_t)>& value,
                   const std::function<bool(int64_t, int64_t)>& kept, const std::string& where) {
  for (int64_t r = 0; r < got.rows; ++r) {
    for (int64_t c = 0; c < got.cols; c += 4) {
      const int nibble = got.word(r, c / 16) >> (c % 16) & 15, first = nibble & 3, second = nibble >> 2;
      ASSERT_LT(first, second) << where << " row " << r << " column " << c;
      std::vector<int64_t> columns;
      for (int64_t i = 0; i < 4; ++i) {
        if (kept(r, c + i)) columns.push_back(i);
      }
      ASSERT_LE(columns.size(), 2u);
      std::array<int64_t, 2> slots{-1, -1};
      if (columns.size() == 2) slots = {columns[0], columns[1]};
      if (columns.size() == 1) slots[columns[0] < 2 ? 0 : 1] = columns[0];
      for (int s = 0; s < 2; ++s) {
        const double v = got.values.get(r, c / 2 + s);
        ASSERT_TRUE(same(v, slots[s] < 0 ? 0 : value(r, c + slots[s]))) << where << " row " << r << " column " << c;
        if (slots[s] < 0) continue;
        ASSERT_EQ(s == 0 ? first : second, slots[s]) << where << " row " << r << " column " << c;
      }
    }
  }
}

struct Sizes {
  int64_t rows, cols;
};
constexpr Sizes kSizes[] = {{1, 1},   {3, 70},   {4, 4},    {7, 31},  {32, 64},
                            {33, 65}, {64, 128}, {70, 190}, {130, 3}, {96, 61}};

std::string name_of_case(const std::string& isa, DType dtype, Sizes s, Sparse24Rule rule) {
  return isa + " " + name_of(dtype) + " [" + std::to_string(s.rows) + ", " + std::to_string(s.cols) + "] rule " +
         std::to_string(static_cast<int>(rule));
}

struct MaskBuffer {
  MaskBuffer(int64_t rows, int64_t cols)
      : across((cols + 63) / 64 * 8), memory(static_cast<size_t>((rows + 31) / 32 * 4 * across) * 8) {
    mask = {reinterpret_cast<uint16_t*>(memory.data()), across * 4};
  }
  bool kept(int64_t r, int64_t c) const {
    const uint16_t* cell = mask.cells + (r / 8 * across + c / 8) * 4;
    return cell[r % 8 / 4 * 2 + c % 8 / 4] >> (r % 4 * 4 + c % 4) & 1;
  }
  int64_t across;
  GuardedBuffer memory;
  Sparse24Mask mask;
};

TEST(Sparse24, Pack) {
  for_each_isa([](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (Sizes s : kSizes) {
        for (Sparse24Rule rule : kRules) {
          const std::string where = name_of_case(isa, dtype, s, rule);
          const int64_t stride = s.cols + 3;  // the last row ends the memory
          RowBuffer all(dtype, 1, (s.rows - 1) * stride + s.cols), x(dtype, s.rows, s.cols);
          fill(all, 7 * static_cast<uint64_t>(s.rows) + static_cast<uint64_t>(s.cols));
          for (int64_t i = 0; i < x.count(); ++i) x.set(i, all.get(i / s.cols * stride + i % s.cols));
          PackedBuffer packed(dtype, s.rows, s.cols), turned(dtype, s.cols, s.rows);
          MaskBuffer mask(s.rows, s.cols);
          cpu::sparse24_pack({.dtype = dtype,
                              .rows = s.rows,
                              .cols = s.cols,
                              .x = {all.data(), stride},
                              .rule = rule,
                              .mask = mask.mask,
                              .packed = packed.packed,
                              .packed_t = turned.packed},
                             kThreads);
          const std::vector<bool> expected = expected_mask(x, s.rows, s.cols, rule);
          const auto value = [&](int64_t r, int64_t c) { return x.get(r, c); };
          const auto kept = [&](int64_t r, int64_t c) {
            return r < s.rows && c < s.cols && expected[static_cast<size_t>(r * s.cols + c)];
          };
          for (int64_t r = 0; r < to_multiple(s.rows, 32); ++r) {
            for (int64_t c = 0; c < to_multiple(s.cols, 64); ++c) {
              ASSERT_EQ(mask.kept(r, c), kept(r, c)) << where << " at " << r << ", " << c;
            }
          }
          expect_packed(packed, value, kept, where);
          expect_packed(
              turned, [&](int64_t r, int64_t c) { return value(c, r); },
              [&](int64_t r, int64_t c) { return kept(c, r); }, where + " transposed");

          // One orientation alone, under the mask; and back.
          PackedBuffer again(dtype, s.rows, s.cols);
          cpu::sparse24_pack({.dtype = dtype,
                              .rows = s.rows,
                              .cols = s.cols,
                              .x = {all.data(), stride},
                              .mask = mask.mask,
                              .mask_given = true,
                              .packed = again.packed},
                             kThreads);
          expect_packed(again, value, kept, where + " under a mask");
          RowBuffer back(dtype, s.rows, s.cols);
          cpu::sparse24_unpack({dtype, s.rows, s.cols, packed.packed, {back.data(), s.cols}}, kThreads);
          for (int64_t r = 0; r < s.rows; ++r) {
            for (int64_t c = 0; c < s.cols; ++c) {
              const double v = kept(r, c) && x.get(r, c) != 0 ? x.get(r, c) : 0;
              ASSERT_TRUE(back.get(r, c) == v || same(back.get(r, c), v)) << where;
            }
          }
        }
      }
    }
  });
}

TEST(Sparse24, LargeAndOneThread) {  // written past the caches, and with any number of threads the same
  const int64_t rows = 2050, cols = 4160;
  RowBuffer x(DType::kBFloat16, rows, cols);
  fill(x, 3);
  const std::vector<bool> expected = expected_mask(x, rows, cols, Sparse24Rule::kLargest);
  for (int threads : {1, 3}) {
    PackedBuffer packed(DType::kBFloat16, rows, cols), turned(DType::kBFloat16, cols, rows);
    MaskBuffer mask(rows, cols);
    cpu::sparse24_pack({.dtype = DType::kBFloat16,
                        .rows = rows,
                        .cols = cols,
                        .x = {x.data(), cols},
                        .mask = mask.mask,
                        .packed = packed.packed,
                        .packed_t = turned.packed},
                       {threads, nullptr});
    const auto value = [&](int64_t r, int64_t c) { return x.get(r, c); };
    const auto kept = [&](int64_t r, int64_t c) {
      return r < rows && c < cols && expected[static_cast<size_t>(r * cols + c)];
    };
    expect_packed(packed, value, kept, "large");
    expect_packed(
        turned, [&](int64_t r, int64_t c) { return value(c, r); }, [&](int64_t r, int64_t c) { return kept(c, r); },
        "large, transposed");
  }
}

TEST(Sparse24, DenseUnderAMask) {
  for_each_isa([](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (Sizes s : kSizes) {
        for (bool column_major : {false, true}) {
          const std::string where = name_of_case(isa, dtype, s, Sparse24Rule::kLargest);
          RowBuffer x(dtype, s.rows, s.cols), out(dtype, s.rows, s.cols);
          fill(x, 5);
          MaskBuffer mask(s.rows, s.cols);
          RowBuffer pattern(dtype, s.rows, s.cols);
          pattern.randomise(9);
          cpu::sparse24_pack(
              {.dtype = dtype, .rows = s.rows, .cols = s.cols, .x = {pattern.data(), s.cols}, .mask = mask.mask},
              kThreads);
          for (double mul0 : {0.0, 0.5}) {
            cpu::sparse24_dense({.dtype = dtype,
                                 .rows = s.rows,
                                 .cols = s.cols,
                                 .x = x.data(),
                                 .row_stride = column_major ? 1 : s.cols,
                                 .col_stride = column_major ? s.rows : 1,
                                 .mask = mask.mask,
                                 .mul0 = mul0,
                                 .mul1 = 2,
                                 .out = out.data()},
                                kThreads);
            for (int64_t r = 0; r < s.rows; ++r) {
              for (int64_t c = 0; c < s.cols; ++c) {
                const double v = x.get(column_major ? c * s.rows + r : r * s.cols + c);
                const double expected = mask.kept(r, c) ? 2 * v : mul0 == 0 ? 0 : mul0 * v;
                ASSERT_TRUE(out.get(r, c) == expected || (std::isnan(expected) && std::isnan(out.get(r, c)))) << where;
              }
            }
          }
        }
      }
    }
  });
}

struct ProductCase {
  int64_t m, n, k;
};

TEST(Sparse24, Product) {
  constexpr ProductCase kCases[] = {{1, 1, 1},    {32, 1, 64},   {33, 2, 65},  {40, 3, 1100},
                                    {65, 7, 96},  {64, 8, 2048}, {31, 9, 130}, {96, 130, 70},
                                    {5, 600, 33}, {70, 64, 0},   {0, 4, 8}};
  for_each_isa([&](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (const ProductCase& c : kCases) {
        for (int kind = 0; kind < 8; ++kind) {
          const bool b_columns = kind & 1, turned = kind & 2, bias_per_row = kind & 4;
          const Activation activation = kind == 3 ? Activation::kSquaredRelu : Activation::kNone;
          RowBuffer a(dtype, c.m, c.k), b(dtype, c.k, c.n), bias(dtype, 1, bias_per_row ? c.m : c.n);
          RowBuffer out(dtype, turned ? c.n : c.m, turned ? c.m : c.n);
          a.randomise(1);
          b.randomise(2);
          bias.randomise(3);
          PackedBuffer packed(dtype, c.m, c.k);
          cpu::sparse24_pack({.dtype = dtype, .rows = c.m, .cols = c.k, .x = {a.data(), c.k}, .packed = packed.packed},
                             kThreads);
          cpu::sparse24_product({.dtype = dtype,
                                 .m = c.m,
                                 .n = c.n,
                                 .k = c.k,
                                 .a = packed.packed,
                                 .b = b.data(),
                                 .b_row = b_columns ? 1 : c.n,
                                 .b_col = b_columns ? c.k : 1,
                                 .bias = bias.data(),
                                 .bias_per_row = bias_per_row,
                                 .activation = activation,
                                 .out = out.data(),
                                 .out_stride = turned ? c.m : c.n,
                                 .out_transposed = turned},
                                kThreads);
          const std::vector<bool> kept = expected_mask(a, c.m, c.k, Sparse24Rule::kLargest);
          for (int64_t i = 0; i < c.m; ++i) {
            for (int64_t j = 0; j < c.n; ++j) {
              double sum = bias.get(bias_per_row ? i : j), scale = std::abs(sum);
              for (int64_t k = 0; k < c.k; ++k) {
                if (!kept[static_cast<size_t>(i * c.k + k)]) continue;
                const double term = a.get(i, k) * b.get(b_columns ? j * c.k + k : k * c.n + j);
                sum += term;
                scale += std::abs(term);
              }
              double expected = sum;
              if (activation == Activation::kSquaredRelu) {
                expected = sum > 0 ? sum * sum : 0;
                scale *= 2 * std::abs(sum) + scale;
              }
              // Every addition of k rounds once more.
              const double additions = std::max<double>(1, static_cast<double>(c.k) / 16);
              expect_near(dtype, turned ? out.get(j, i) : out.get(i, j), expected, scale * additions,
                          isa + " " + name_of(dtype) + " [" + std::to_string(c.m) + ", " + std::to_string(c.k) +
                              "] x " + std::to_string(c.n) + " kind " + std::to_string(kind));
            }
          }
          if (::testing::Test::HasFailure()) return;
        }
      }
    }
  });
}

TEST(Sparse24, SquareCellsOfMetadata) {
  const int64_t rows = 256, cols = 128, n = 12;
  RowBuffer a(DType::kFloat32, rows, cols), b(DType::kFloat32, cols, n), one(DType::kFloat32, rows, n),
      other(DType::kFloat32, rows, n);
  a.randomise(1);
  b.randomise(2);
  for (bool square : {false, true}) {
    PackedBuffer packed(DType::kFloat32, rows, cols, square);
    cpu::sparse24_pack(
        {.dtype = DType::kFloat32, .rows = rows, .cols = cols, .x = {a.data(), cols}, .packed = packed.packed},
        kThreads);
    cpu::sparse24_product({.m = rows,
                           .n = n,
                           .k = cols,
                           .a = packed.packed,
                           .b = b.data(),
                           .b_row = n,
                           .b_col = 1,
                           .out = (square ? other : one).data(),
                           .out_stride = n},
                          kThreads);
  }
  for (int64_t i = 0; i < one.count(); ++i) ASSERT_EQ(one.get(i), other.get(i));
}

double activated(Activation activation, double x) {
  switch (activation) {
    case Activation::kRelu: return std::max(x, 0.0);
    case Activation::kSquaredRelu: return x > 0 ? x * x : 0;
    case Activation::kGelu: return x / 2 * (1 + std::tanh(std::sqrt(2 / M_PI) * (x + 0.044715 * x * x * x)));
    case Activation::kGeluExact: return x / 2 * std::erfc(-x / std::sqrt(2.0));
    default: return x / (1 + std::exp(-x));  // of the gate
  }
}

TEST(Sparse24, ActivationAndItsGradients) {
  for_each_isa([](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (Activation activation : {Activation::kNone, Activation::kRelu, Activation::kSquaredRelu, Activation::kGelu,
                                    Activation::kGeluExact}) {
        const bool gate = activation == Activation::kNone;
        const int64_t rows = 37, cols = 75;
        const std::string where =
            isa + " " + name_of(dtype) + " activation " + std::to_string(static_cast<int>(activation));
        RowBuffer x(dtype, rows, cols), x2(dtype, rows, cols), dy(dtype, rows, cols), dx(dtype, rows, cols),
            dx2(dtype, rows, cols), y(dtype, rows, cols);
        x.randomise(1);
        x2.randomise(2);
        dy.randomise(3);
        PackedBuffer packed(dtype, rows, cols);
        MaskBuffer mask(rows, cols);
        const Rows of_x2 = gate ? Rows{x2.data(), cols} : Rows{};
        cpu::sparse24_pack({.dtype = dtype,
                            .rows = rows,
                            .cols = cols,
                            .x = {x.data(), cols},
                            .activation = activation,
                            .x2 = of_x2,
                            .mask = mask.mask,
                            .packed = packed.packed},
                           kThreads);
        cpu::sparse24_unpack({dtype, rows, cols, packed.packed, {y.data(), cols}}, kThreads);
        cpu::sparse24_activation_backward({.dtype = dtype,
                                           .rows = rows,
                                           .cols = cols,
                                           .activation = activation,
                                           .x = {x.data(), cols},
                                           .x2 = of_x2,
                                           .dout = {dy.data(), cols},
                                           .mask = mask.mask,
                                           .dx = {dx.data(), cols},
                                           .dx2 = gate ? Rows{dx2.data(), cols} : Rows{}},
                                          kThreads);
        for (int64_t r = 0; r < rows; ++r) {
          for (int64_t c = 0; c < cols; ++c) {
            if (!mask.kept(r, c)) {
              ASSERT_EQ(dx.get(r, c), 0) << where;
              ASSERT_TRUE(!gate || dx2.get(r, c) == 0) << where;
              continue;
            }
            const double v = x.get(r, c), factor = gate ? x2.get(r, c) : 1, step = 1e-5;
            expect_near(dtype, y.get(r, c), activated(activation, v) * factor, 4, where);
            if (std::abs(v) < 2 * step) continue;  // a kink
            const double slope = (activated(activation, v + step) - activated(activation, v - step)) / (2 * step);
            // The difference quotient itself is good to 1e-9.
            const double expected = dy.get(r, c) * factor * slope;
            expect_near(dtype, dx.get(r, c), expected, dtype == DType::kFloat64 ? 1e6 : 16, where);
            if (gate) expect_near(dtype, dx2.get(r, c), dy.get(r, c) * activated(activation, v), 16, where);
          }
        }
      }
    }
  });
}

TEST(Sparse24, RefusesWhatItCannotDo) {
  EXPECT_THROW(cpu::sparse24_pack({.rows = 4, .cols = 4}, kThreads), Error);
  RowBuffer x(DType::kFloat32, 4, 4);
  EXPECT_THROW(
      cpu::sparse24_pack({.rows = 4, .cols = 4, .x = {x.data(), 4}, .activation = Activation::kSmelu}, kThreads),
      Error);
  EXPECT_THROW(cpu::sparse24_pack({.rows = 4, .cols = 4, .x = {x.data(), 4}, .mask_given = true}, kThreads), Error);
  EXPECT_THROW(cpu::sparse24_product({.m = 2, .n = 2, .k = 2}, kThreads), Error);
}

}  // namespace
}  // namespace xformers::testing
