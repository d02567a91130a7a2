// A matrix and the few operations that the reference needs, as simple loops.
#pragma once

#include <algorithm>
#include <cmath>
#include <cstdint>
#include <limits>
#include <vector>

namespace xformers::reference {

template <class Real>
struct Matrix {
  int64_t rows = 0, cols = 0;
  std::vector<Real> data;

  Matrix(int64_t rows, int64_t cols) : rows(rows), cols(cols), data(static_cast<size_t>(rows * cols), Real{0}) {}
  Real& operator()(int64_t row, int64_t col) { return data[static_cast<size_t>(row * cols + col)]; }
  const Real& operator()(int64_t row, int64_t col) const { return data[static_cast<size_t>(row * cols + col)]; }
};

template <class Real>
Matrix<Real> transpose(const Matrix<Real>& a) {
  Matrix<Real> result(a.cols, a.rows);
  for (int64_t i = 0; i < a.rows; ++i) {
    for (int64_t j = 0; j < a.cols; ++j) result(j, i) = a(i, j);
  }
  return result;
}

// Taken out of the matrix, 0 in their place: the rows and columns that hold a NaN.
template <class Real>
struct NaNs {
  std::vector<char> in_row, in_column;

  explicit NaNs(Matrix<Real>& m) : in_row(m.rows), in_column(m.cols) {
    for (int64_t i = 0; i < m.rows; ++i) {
      for (int64_t j = 0; j < m.cols; ++j) {
        if (std::isnan(m(i, j))) in_row[i] = in_column[j] = true, m(i, j) = 0;
      }
    }
  }
};

// result[j] += sum of factors[k] * b(k, j), term by term in the order of k.
void add_row(const float* factors, const Matrix<float>& b, float* result);
void add_row(const double* factors, const Matrix<double>& b, double* result);
void add_row(const long double* factors, const Matrix<long double>& b, long double* result);

// A sum that holds a NaN is one, and is not added up: with NaN, long double is a hundred times as slow as with numbers.
template <class Real>
Matrix<Real> product(Matrix<Real> a, Matrix<Real> b) {
  const NaNs<Real> left(a), right(b);
  Matrix<Real> result(a.rows, b.cols);
  if (result.data.empty()) return result;
  for (int64_t i = 0; i < a.rows; ++i) {
    add_row(a.data.data() + i * a.cols, b, &result(i, 0));
    for (int64_t j = 0; j < b.cols; ++j) {
      if (left.in_row[i] || right.in_column[j]) result(i, j) = std::numeric_limits<Real>::quiet_NaN();
    }
  }
  return result;
}

// Element by element: fn(i, j) gives the new value.
template <class Real, class Fn>
Matrix<Real> tabulate(int64_t rows, int64_t cols, const Fn& fn) {
  Matrix<Real> result(rows, cols);
  for (int64_t i = 0; i < rows; ++i) {
    for (int64_t j = 0; j < cols; ++j) result(i, j) = fn(i, j);
  }
  return result;
}

template <class Real>
Matrix<Real> squares(const Matrix<Real>& a) {
  return tabulate<Real>(a.rows, a.cols, [&](int64_t i, int64_t j) { return a(i, j) * a(i, j); });
}

// What independent errors add up to: the root of the sum of the squared terms of product(a, b).
template <class Real>
Matrix<Real> root_sum_squares(const Matrix<Real>& a, const Matrix<Real>& b) {
  Matrix<Real> result = product(squares(a), squares(b));
  for (Real& x : result.data) x = std::sqrt(x);
  return result;
}

// How large the elements of product(a, b) are, or would be without cancellation.
template <class Real>
Matrix<Real> product_sizes(const Matrix<Real>& a, const Matrix<Real>& b) {
  const Matrix<Real> values = product(a, b);
  Matrix<Real> result = root_sum_squares(a, b);
  for (size_t i = 0; i < result.data.size(); ++i) result.data[i] = std::max(result.data[i], std::abs(values.data[i]));
  return result;
}

}  // namespace xformers::reference
