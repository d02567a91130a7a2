// The fused layer without LibTorch: every instruction set, element type and activation against plain loops in double
// and the scalar form of the random stream.
#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/base/philox.h"
#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kRows = 5;
constexpr Activation kActivations[] = {Activation::kNone,     Activation::kRelu,     Activation::kLeakyRelu,
                                       Activation::kGelu,     Activation::kSmelu,    Activation::kSquaredRelu,
                                       Activation::kStarRelu, Activation::kGeluExact};
const cpu::Threads kThreads{2, nullptr};
const Dropout kDropout{.p = 0.3, .philox_seed = 0x123456789abcdef0, .philox_offset = 0xfedcba987654321};

double inner(double z) { return 2 * std::sqrt(2 / M_PI) * (z + 0.044715 * z * z * z); }
double sigmoid(double u) { return 1 / (1 + std::exp(-u)); }

double activate(Activation activation, double z) {
  switch (activation) {
    case Activation::kNone: return z;
    case Activation::kRelu: return z >= 0 ? z : 0;
    case Activation::kLeakyRelu: return z >= 0 ? z : 0.01 * z;
    case Activation::kGelu: return z * sigmoid(inner(z));
    case Activation::kSquaredRelu: return z >= 0 ? z * z : 0;
    case Activation::kSmelu: return z >= 2 ? z : z >= -2 ? (z + 2) * (z + 2) / 8 : 0;
    case Activation::kStarRelu: return (z >= 0 ? 0.8944 * z * z : 0) - 0.4472;
    case Activation::kGeluExact: return z * std::erfc(-z / std::sqrt(2)) / 2;
  }
  return NAN;
}

double slope(Activation activation, double z) {
  switch (activation) {
    case Activation::kNone: return 1;
    case Activation::kRelu: return z >= 0 ? 1 : 0;
    case Activation::kLeakyRelu: return z >= 0 ? 1 : 0.01;
    case Activation::kGelu: {
      const double s = sigmoid(inner(z));
      return s + z * s * (1 - s) * 2 * std::sqrt(2 / M_PI) * (1 + 3 * 0.044715 * z * z);
    }
    case Activation::kSquaredRelu: return z >= 0 ? 2 * z : 0;
    case Activation::kSmelu: return z >= 2 ? 1 : z >= -2 ? (z + 2) / 4 : 0;
    case Activation::kStarRelu: return z >= 0 ? 1.7888 * z : 0;
    case Activation::kGeluExact:
      return std::erfc(-z / std::sqrt(2)) / 2 + z * std::exp(-z * z / 2) / std::sqrt(2 * M_PI);
  }
  return NAN;
}

double factor(const Dropout& dropout, int64_t row, int64_t column) {
  if (dropout.p == 0) return 1;
  const uint32_t draw = row_dropout_draw(philox_key(dropout.philox_seed, dropout.philox_offset), row, column);
  return draw >= drop_threshold(dropout.p) ? 1 / (1 - dropout.p) : 0;
}

template <class Body>
void for_each_case(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (int64_t width : {1, 2, 15, 16, 33, 129, 1100}) {
        for (Activation activation : kActivations) {
          const BiasActDropoutShape shape{dtype, kRows, width, activation, width % 2 == 0 ? Dropout{} : kDropout};
          body(shape, isa + " " + name_of(dtype) + " width " + std::to_string(width) + " activation " +
                          std::to_string(static_cast<int>(activation)));
        }
      }
    }
  });
}

TEST(BiasActDropout, Forward) {
  for_each_case([](const BiasActDropoutShape& shape, const std::string& where) {
    const auto [dtype, rows, width, activation, dropout, bias_dtype] = shape;
    RowBuffer x(dtype, rows, width), residual(dtype, rows, width), out(dtype, rows, width);
    RowBuffer bias(bias_dtype, 1, width);
    x.randomise(1);
    residual.randomise(2);
    bias.randomise(3);
    cpu::bias_act_dropout_forward({.shape = shape,
                                   .x = {x.data(), width},
                                   .bias = bias.data(),
                                   .residual = {residual.data(), width},
                                   .out = {out.data(), width}},
                                  kThreads);
    for (int64_t row = 0; row < rows; ++row) {
      for (int64_t i = 0; i < width; ++i) {
        const double value = activate(activation, x.get(row, i) + bias.get(0, i)) * factor(dropout, row, i);
        expect_near(dtype, out.get(row, i), value + residual.get(row, i), 16, where);
      }
    }
  });
}

TEST(BiasActDropout, Backward) {
  for_each_case([](const BiasActDropoutShape& shape, const std::string& where) {
    const auto [dtype, rows, width, activation, dropout, bias_dtype] = shape;
    RowBuffer x(dtype, rows, width), dout(dtype, rows, width), dx(dtype, rows, width);
    RowBuffer bias(bias_dtype, 1, width), dbias(bias_dtype, 1, width);
    x.randomise(1);
    dout.randomise(2);
    bias.randomise(3);
    cpu::bias_act_dropout_backward({.shape = shape,
                                    .x = {x.data(), width},
                                    .bias = bias.data(),
                                    .dout = {dout.data(), width},
                                    .dx = {dx.data(), width},
                                    .dbias = dbias.data()},
                                   kThreads);
    for (int64_t i = 0; i < width; ++i) {
      double sum = 0;
      for (int64_t row = 0; row < rows; ++row) {
        const double expected =
            dout.get(row, i) * factor(dropout, row, i) * slope(activation, x.get(row, i) + bias.get(0, i));
        expect_near(dtype, dx.get(row, i), expected, 16, where);
        sum += expected;
      }
      expect_near(compute_of(dtype), dbias.get(0, i), sum, 64, where);
    }
  });
}

// Rows far apart, no bias, in place; everything dropped leaves the residual, NaN and all.
TEST(BiasActDropout, StridesAndNothingKept) {
  for_each_isa([](const std::string& isa) {
    constexpr int64_t kWidth = 40, kStride = 64;
    RowBuffer x(DType::kFloat32, kRows, kStride);
    x.randomise(1);
    RowBuffer before(DType::kFloat32, kRows, kStride);
    before.randomise(1);
    BiasActDropoutShape shape{DType::kFloat32, kRows, kWidth, Activation::kRelu, kDropout};
    const Rows rows{x.data(), kStride};
    cpu::bias_act_dropout_forward({.shape = shape, .x = rows, .bias = nullptr, .residual = {}, .out = rows}, kThreads);
    for (int64_t row = 0; row < kRows; ++row) {
      for (int64_t i = 0; i < kStride; ++i) {
        const double z = before.get(row, i), kept = i < kWidth ? std::max(z, 0.0) * factor(kDropout, row, i) : z;
        expect_near(DType::kFloat32, x.get(row, i), kept, 0, isa);
      }
    }
    shape.dropout.p = 1;
    x.set(0, NAN);
    cpu::bias_act_dropout_forward(
        {.shape = shape, .x = rows, .bias = nullptr, .residual = {before.data(), kStride}, .out = rows}, kThreads);
    for (int64_t i = 0; i < kWidth; ++i) EXPECT_EQ(x.get(0, i), before.get(0, i)) << isa;
  });
}

// The exact gelu far out: relative to the value itself below, where it vanishes, and infinities like the formula's
// limits.
TEST(BiasActDropout, ExactGeluFarOut) {
  for_each_isa([](const std::string& isa) {
    constexpr int64_t kWidth = 2640;  // -13.2 ... 13.2
    RowBuffer x(DType::kFloat32, 1, kWidth), out(DType::kFloat32, 1, kWidth);
    for (int64_t i = 0; i < kWidth; ++i) x.set(i, (static_cast<double>(i) - 1320) / 100);
    x.set(0, -INFINITY);
    x.set(1, INFINITY);
    x.set(2, NAN);
    const BiasActDropoutShape shape{DType::kFloat32, 1, kWidth, Activation::kGeluExact, {}};
    cpu::bias_act_dropout_forward(
        {.shape = shape, .x = {x.data(), kWidth}, .bias = nullptr, .residual = {}, .out = {out.data(), kWidth}},
        kThreads);
    EXPECT_EQ(out.get(0), 0) << isa;
    EXPECT_EQ(out.get(1), INFINITY) << isa;
    EXPECT_TRUE(std::isnan(out.get(2))) << isa;
    // Near 0 the polynomial's partial sums add up to five times its value, and each is rounded: four units, and as many
    // for what it is multiplied by. Without FMA all products are rounded too: twice that.
    const double units = isa == "portable" ? 16 : 8;
    for (int64_t i = 3; i < kWidth; ++i) {
      const double z = x.get(i), expected = activate(Activation::kGeluExact, z);
      // exp(-z^2 / 2): the rounding of its argument counts z^2 / 2 times.
      EXPECT_NEAR(out.get(i), expected, (units + z * z) * 6e-8 * std::abs(expected) + 1e-37) << isa << " z " << z;
    }
  });
}

TEST(BiasActDropout, SumsOfNoRowsAreZero) {
  RowBuffer dbias(DType::kFloat32, 1, 9);
  cpu::bias_act_dropout_backward({.shape = {.rows = 0, .width = 9, .activation = Activation::kGelu, .dropout = {}},
                                  .x = {},
                                  .bias = nullptr,
                                  .dout = {},
                                  .dx = {},
                                  .dbias = dbias.data()},
                                 kThreads);
  for (int64_t i = 0; i < 9; ++i) EXPECT_EQ(dbias.get(i), 0);
}

TEST(BiasActDropout, MissingInput) {
  RowBuffer dout(DType::kFloat32, 1, 4);
  EXPECT_THROW(
      cpu::bias_act_dropout_backward({.shape = {.rows = 1, .width = 4, .activation = Activation::kRelu, .dropout = {}},
                                      .x = {},
                                      .bias = nullptr,
                                      .dout = {dout.data(), 4},
                                      .dx = {dout.data(), 4},
                                      .dbias = nullptr},
                                     kThreads),
      Error);
}

}  // namespace
}  // namespace xformers::testing
