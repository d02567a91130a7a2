#include "tests/reference/matrix.h"

// The tests wait for these loops more than for anything else, so they are compiled for wide registers too. Nothing is
// fused or reordered (-ffp-contract=off in tests/CMakeLists.txt): every processor gives the same bits.
#if defined(__x86_64__) && defined(__GNUC__) && !defined(__clang__)
#define XFORMERS_WIDE __attribute__((target_clones("arch=x86-64-v4", "arch=x86-64-v3", "default")))
#else
#define XFORMERS_WIDE
#endif

namespace xformers::reference {
namespace {

// Four terms for each time that `result` is read and written.
template <class Real>
[[gnu::always_inline]] inline void add(const Real* __restrict factors, const Real* __restrict b, int64_t rows,
                                       int64_t cols, Real* __restrict result) {
  int64_t k = 0;
  for (; k + 4 <= rows; k += 4) {
    const Real f0 = factors[k], f1 = factors[k + 1], f2 = factors[k + 2], f3 = factors[k + 3];
    const Real *b0 = b + k * cols, *b1 = b0 + cols, *b2 = b1 + cols, *b3 = b2 + cols;
    for (int64_t j = 0; j < cols; ++j) result[j] = result[j] + f0 * b0[j] + f1 * b1[j] + f2 * b2[j] + f3 * b3[j];
  }
  for (; k < rows; ++k) {
    for (int64_t j = 0; j < cols; ++j) result[j] += factors[k] * b[k * cols + j];
  }
}

XFORMERS_WIDE void add_floats(const float* factors, const float* b, int64_t rows, int64_t cols, float* result) {
  add(factors, b, rows, cols, result);
}
XFORMERS_WIDE void add_doubles(const double* factors, const double* b, int64_t rows, int64_t cols, double* result) {
  add(factors, b, rows, cols, result);
}

}  // namespace

void add_row(const float* factors, const Matrix<float>& b, float* result) {
  add_floats(factors, b.data.data(), b.rows, b.cols, result);
}
void add_row(const double* factors, const Matrix<double>& b, double* result) {
  add_doubles(factors, b.data.data(), b.rows, b.cols, result);
}
void add_row(const long double* factors, const Matrix<long double>& b, long double* result) {
  add(factors, b.data.data(), b.rows, b.cols, result);
}

}  // namespace xformers::reference
