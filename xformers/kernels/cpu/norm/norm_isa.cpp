// Normalisation row by row: a row is read from memory once and then found in the cache. Compiled once per instruction
// set.
#include <cmath>

#include "xformers/kernels/cpu/base/column_sums-inl.h"
#include "xformers/kernels/cpu/base/rows-inl.h"
#include "xformers/kernels/cpu/norm/norm_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

// (x - mean) * scale is the normalised row; mean is 0 for RMS. In units of a power of two it is
// (x * unit - mean_in_units) * scale_of_units.
struct Statistics {
  double mean = 0, scale = 1;
  double unit = 1, mean_in_units = 0, scale_of_units = 1;
};

// Statistics from sums over x - guess and (x - guess)^2, with lanes of type C. Exact: the guess is so near the mean
// that nothing cancels, and the squares were numbers, neither too large nor too small for C.
template <class C>
struct Moments {
  double mean_deviation, scale;
  bool exact;

  HWY_INLINE Moments(double sum, double sum_squares, const NormShape& shape) {
    constexpr double kLeast = sizeof(C) == 8 ? 0x1p-900 : 0x1p-100;
    const double count = static_cast<double>(shape.width);
    mean_deviation = sum / count;
    const double square = mean_deviation * mean_deviation, difference = sum_squares / count - square;
    const double variance = difference > 0 ? difference : 0;
    scale = 1 / std::sqrt(variance + shape.eps);
    exact = square <= 4 * variance && sum_squares <= __DBL_MAX__ && sum_squares / count + shape.eps >= kLeast;
  }
};

// The exact way, pass after pass: for rows whose first element is far from the others, and in units of a power of two
// near the largest element, so that squares are numbers. Rare, so there is one copy for all who may need it.
template <bool kCentred, class T>
HWY_NOINLINE Statistics exact_statistics(const T* HWY_RESTRICT x, const NormShape& shape) {
  using C = Compute<T>;
  constexpr int kFinest = sizeof(C) == 8 ? 700 : 75, kCoarsest = sizeof(C) == 8 ? -1022 : -126;
  const Tag<C> d;
  auto largest = hn::Zero(d);
  for_each_vec<C>(shape.width,
                  [&](ptrdiff_t i, auto n) { largest = hn::Max(largest, hn::Abs(only_n(load_n(x + i, n), n))); });
  const double top = static_cast<double>(hn::GetLane(hn::MaxOfLanes(d, largest)));
  Statistics row;
  if (top > 0 && top <= __DBL_MAX__) {
    const int exponent = -std::ilogb(top);
    row.unit = std::ldexp(1.0, exponent < kCoarsest ? kCoarsest : exponent > kFinest ? kFinest : exponent);
  }
  const double count = static_cast<double>(shape.width);
  const auto unit = hn::Set(d, static_cast<C>(row.unit));
  double sum[1];
  if constexpr (kCentred) {
    sum_row<C>(shape.width, sum,
               [&](ptrdiff_t i, auto n, Vec<C>* sums) { sums[0] = hn::MulAdd(load_n(x + i, n), unit, sums[0]); });
    row.mean_in_units = sum[0] / count;
  }
  const auto mean = hn::Set(d, static_cast<C>(row.mean_in_units));
  sum_row<C>(shape.width, sum, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
    const auto deviation = only_n(hn::MulSub(load_n(x + i, n), unit, mean), n);
    sums[0] = hn::MulAdd(deviation, deviation, sums[0]);
  });
  row.scale_of_units = 1 / std::sqrt(sum[0] / count + shape.eps * row.unit * row.unit);
  row.mean = row.mean_in_units / row.unit;
  row.scale = row.scale_of_units * row.unit;
  return row;
}

template <bool kCentred, class T>
HWY_INLINE Statistics statistics_of(const T* HWY_RESTRICT x, const NormShape& shape) {
  using C = Compute<T>;
  if constexpr (!kCentred) {
    double square[1];
    sum_row<C>(shape.width, square, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
      const auto value = load_n(x + i, n);
      sums[0] = hn::MulAdd(value, value, sums[0]);
    });
    const Moments<C> moments(0, square[0], shape);
    return moments.exact ? Statistics{.scale = moments.scale} : exact_statistics<kCentred>(x, shape);
  } else {
    const C guess = static_cast<C>(to_compute(x[0]));
    const auto v_guess = hn::Set(Tag<C>(), guess);
    double sums_of_row[2];
    sum_row<C>(shape.width, sums_of_row, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
      const auto deviation = only_n(hn::Sub(load_n(x + i, n), v_guess), n);
      sums[0] = hn::Add(sums[0], deviation);
      sums[1] = hn::MulAdd(deviation, deviation, sums[1]);
    });
    const Moments<C> moments(sums_of_row[0], sums_of_row[1], shape);
    if (!moments.exact) return exact_statistics<kCentred>(x, shape);
    return {.mean = guess + moments.mean_deviation, .scale = moments.scale};
  }
}

// x += increment; the statistics are those of the sum before it is rounded (after, where its squares did not fit).
template <class T>
HWY_INLINE Statistics increment_row(T* HWY_RESTRICT x, const T* HWY_RESTRICT increment, const NormShape& shape) {
  using C = Compute<T>;
  double sum[1];
  sum_row<C>(shape.width, sum, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
    const auto value = hn::Add(load_n(x + i, n), load_n(increment + i, n));
    sums[0] = hn::MulAdd(value, value, sums[0]);
    store_n(value, x + i, n);
  });
  const Moments<C> moments(0, sum[0], shape);
  return moments.exact ? Statistics{.scale = moments.scale} : exact_statistics<false>(x, shape);
}

// out = (x - mean) * scale * weight + bias; fetch(i) asks for what is read next.
template <bool kCentred, bool kStream, class T, class Fetch>
HWY_INLINE void normalise_row(const NormFwdParams& p, int64_t row, const T* HWY_RESTRICT x,
                              const Statistics& statistics, const Fetch& fetch) {
  using C = Compute<T>;
  const C* weight = static_cast<const C*>(p.weight);
  const C* bias = static_cast<const C*>(p.bias);
  const auto mean = hn::Set(Tag<C>(), static_cast<C>(statistics.mean));
  const auto scale = hn::Set(Tag<C>(), static_cast<C>(statistics.scale));
  map_row<kStream>(row_at<T>(p.out, row), p.shape.width, [&](ptrdiff_t i, auto n) {
    fetch(i);
    auto value = load_n(x + i, n);
    if constexpr (kCentred) value = hn::Sub(value, mean);
    value = hn::Mul(value, scale);
    if (weight) value = hn::Mul(value, load_n(weight + i, n));
    if (bias) value = hn::Add(value, load_n(bias + i, n));
    return value;
  });
}

template <class T, bool kCentred, bool kStream>
void forward_rows(const NormFwdParams& p, int64_t begin, int64_t end) {
  for (int64_t row = begin; row < end; ++row) {
    T* x = row_at<T>(p.x, row);
    const int64_t next = min_of(row + 1, end - 1);
    const T* const next_x = row_at<T>(p.x, next);
    const T* const next_increment = p.increment.data ? row_at<const T>(p.increment, next) : nullptr;
    const auto fetch = [&](ptrdiff_t i) {
      if constexpr (kStream) {
        prefetch(next_x + i);
        if (next_increment) prefetch(next_increment + i);
      }
    };
    const Statistics statistics = p.increment.data ? increment_row(x, row_at<const T>(p.increment, row), p.shape)
                                                   : statistics_of<kCentred>(x, p.shape);
    normalise_row<kCentred, kStream>(p, row, x, statistics, fetch);
  }
  finish_streams();
}

// The sum of a row is written and, while it is in the cache, normalised.
template <class T, bool kStream>
void rows_of_sum(const NormOfSumParams& p, int64_t begin, int64_t end) {
  using C = Compute<T>;
  const auto scale = hn::Set(Tag<C>(), static_cast<C>(p.scale));
  for (int64_t row = begin; row < end; ++row) {
    const T* HWY_RESTRICT update = row_at<const T>(p.update, row);
    const T* HWY_RESTRICT residual = row_at<const T>(p.residual, row);
    const int64_t next = min_of(row + 1, end - 1);
    const T *const next_update = row_at<const T>(p.update, next), *const next_residual =
                                                                      row_at<const T>(p.residual, next);
    T* HWY_RESTRICT sum = row_at<T>(p.norm.x, row);
    map_row<false>(sum, p.norm.shape.width, [&](ptrdiff_t i, auto n) {
      return hn::MulAdd(load_n(residual + i, n), scale, load_n(update + i, n));
    });
    normalise_row<true, kStream>(p.norm, row, sum, statistics_of<true>(sum, p.norm.shape), [&](ptrdiff_t i) {
      if constexpr (kStream) {
        prefetch(next_update + i);
        prefetch(next_residual + i);
      }
    });
  }
  finish_streams();
}

// With z = (x - mean) * scale and g = weight * dout:
//   dx = scale * (g - z * mean(g z) [- mean(g) where centred]),  dweight = sum of dout * z,  dbias = sum of dout
// What a row's gradients are made of, in the compute type.
template <class C>
struct RowTerms {
  C mean, scale, z_factor, g_mean;  // z_factor = mean(g z)
};

// The sum of g * (x - mean) in units of exact_statistics, which `statistics` are; as rare as these.
template <class T>
HWY_NOINLINE double exact_deviation(const NormBwdParams& p, int64_t row, const Statistics& statistics) {
  using C = Compute<T>;
  const Tag<C> d;
  const T* HWY_RESTRICT x = row_at<const T>(p.x, row);
  const T* HWY_RESTRICT dout = row_at<const T>(p.dout, row);
  const C* HWY_RESTRICT weight = static_cast<const C*>(p.weight);
  const auto unit = hn::Set(d, static_cast<C>(statistics.unit));
  const auto mean = hn::Set(d, static_cast<C>(statistics.mean_in_units));
  double deviation[1];
  sum_row<C>(p.shape.width, deviation, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
    auto g = load_n(dout + i, n);
    if (weight) g = hn::Mul(g, load_n(weight + i, n));
    sums[0] = hn::MulAdd(g, hn::MulSub(load_n(x + i, n), unit, mean), sums[0]);
  });
  return deviation[0];
}

// Asks for the next row of x meanwhile. One copy for all numbers of rows: a call per row costs nothing beside the row.
template <class T, bool kCentred, bool kStream>
HWY_NOINLINE RowTerms<Compute<T>> terms_of(const NormBwdParams& p, int64_t row, const T* next_x) {
  using C = Compute<T>;
  const T* HWY_RESTRICT x = row_at<const T>(p.x, row);
  const T* HWY_RESTRICT dout = row_at<const T>(p.dout, row);
  const C* HWY_RESTRICT weight = static_cast<const C*>(p.weight);
  const ptrdiff_t width = p.shape.width;
  const Tag<C> d;
  const auto weighted = [&](ptrdiff_t i, auto n) {
    if constexpr (kStream) prefetch(next_x + i);
    const auto gradient = load_n(dout + i, n);
    return weight ? hn::Mul(gradient, load_n(weight + i, n)) : gradient;
  };
  Statistics statistics;
  double g_sum = 0, g_deviation = 0;  // sums of g and of g * (x - mean)
  bool exact;
  if constexpr (kCentred) {
    const C guess = static_cast<C>(to_compute(x[0]));
    const auto v_guess = hn::Set(d, guess);
    double sums_of_row[4];
    sum_row<C>(width, sums_of_row, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
      const auto deviation = only_n(hn::Sub(load_n(x + i, n), v_guess), n);
      const auto g = weighted(i, n);
      sums[0] = hn::Add(sums[0], deviation);
      sums[1] = hn::MulAdd(deviation, deviation, sums[1]);
      sums[2] = hn::Add(sums[2], g);
      sums[3] = hn::MulAdd(g, deviation, sums[3]);
    });
    const Moments<C> moments(sums_of_row[0], sums_of_row[1], p.shape);
    exact = moments.exact;
    statistics = {.mean = guess + moments.mean_deviation, .scale = moments.scale};
    g_sum = sums_of_row[2];
    g_deviation = sums_of_row[3] - moments.mean_deviation * g_sum;
  } else {
    double sums_of_row[2];
    sum_row<C>(width, sums_of_row, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
      const auto value = load_n(x + i, n);
      sums[0] = hn::MulAdd(value, value, sums[0]);
      sums[1] = hn::MulAdd(weighted(i, n), value, sums[1]);
    });
    const Moments<C> moments(0, sums_of_row[0], p.shape);
    exact = moments.exact;
    statistics.scale = moments.scale;
    g_deviation = sums_of_row[1];
  }
  double scale_of_deviation = statistics.scale;
  if (!exact) {
    statistics = exact_statistics<kCentred>(x, p.shape);
    scale_of_deviation = statistics.scale_of_units;
    g_deviation = exact_deviation<T>(p, row, statistics);
  }
  const double count = static_cast<double>(width);
  return {static_cast<C>(statistics.mean), static_cast<C>(statistics.scale),
          static_cast<C>(g_deviation * scale_of_deviation / count), static_cast<C>(g_sum / count)};
}

// dx of kRows rows from `first` on, which also go into dweight and dbias (null: none): several rows share each access
// to these sums and to the weight. Meanwhile the next rows before `end` are asked for: x while this x is read, dout
// while dx is written.
template <class T, bool kCentred, bool kStream, int kRows>
HWY_INLINE void backward_of_rows(const NormBwdParams& p, int64_t first, int64_t end, Compute<T>* dweight,
                                 Compute<T>* dbias) {
  using C = Compute<T>;
  const Tag<C> d;
  const C* HWY_RESTRICT weight = static_cast<const C*>(p.weight);
  const ptrdiff_t width = p.shape.width;
  const T *x[kRows], *dout[kRows], *next_dout[kRows];
  T* dx[kRows];
  RowTerms<C> terms[kRows];
  for (int r = 0; r < kRows; ++r) {
    x[r] = row_at<const T>(p.x, first + r);
    dout[r] = row_at<const T>(p.dout, first + r);
    const int64_t next = min_of(first + kRows + r, end - 1);
    next_dout[r] = row_at<const T>(p.dout, next);
    dx[r] = p.dx.data ? row_at<T>(p.dx, first + r) : nullptr;
    terms[r] = terms_of<T, kCentred, kStream>(p, first + r, row_at<const T>(p.x, next));
  }
  const auto columns = [&](ptrdiff_t i, auto n, Vec<C>* results) XFORMERS_INLINED {
    const auto w = weight ? load_n(weight + i, n) : hn::Set(d, C(1));
    auto weight_sum = dweight ? load_n(dweight + i, n) : hn::Zero(d);
    auto bias_sum = dbias ? load_n(dbias + i, n) : hn::Zero(d);
    for (int r = 0; r < kRows; ++r) {
      if constexpr (kStream) prefetch(next_dout[r] + i);
      const auto gradient = load_n(dout[r] + i, n), scale = hn::Set(d, terms[r].scale);
      auto z = load_n(x[r] + i, n);
      if constexpr (kCentred) z = hn::Sub(z, hn::Set(d, terms[r].mean));
      z = hn::Mul(z, scale);
      weight_sum = hn::MulAdd(gradient, z, weight_sum);
      bias_sum = hn::Add(gradient, bias_sum);
      auto g = hn::Mul(gradient, w);
      if constexpr (kCentred) g = hn::Sub(g, hn::Set(d, terms[r].g_mean));
      results[r] = hn::Mul(scale, hn::NegMulAdd(z, hn::Set(d, terms[r].z_factor), g));
    }
    if (dweight) store_n(weight_sum, dweight + i, n);
    if (dbias) store_n(bias_sum, dbias + i, n);
  };
  if (p.dx.data) {
    map_rows(kStream, dx, width, columns);
  } else {
    for_each_vec<C>(width, [&](ptrdiff_t i, auto n) XFORMERS_INLINED {
      Vec<C> unwanted[kRows];
      columns(i, n, unwanted);
    });
  }
}

template <class T, bool kCentred, bool kStream>
void backward_rows(const NormBwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  constexpr int kAtOnce = 2;
  if (!p.dweight && !p.dbias) {
    for_each_block(threads, p.shape.rows, 3 * p.shape.width * static_cast<int64_t>(sizeof(T)),
                   [&](int64_t begin, int64_t end) {
                     for (int64_t row = begin; row < end; ++row) {
                       backward_of_rows<T, kCentred, kStream, 1>(p, row, end, nullptr, nullptr);
                     }
                     finish_streams();
                   });
  } else if (!p.dbias) {
    C* const results[1] = {static_cast<C*>(p.dweight)};
    sum_columns<C, 1, kAtOnce>(
        threads, p.shape.rows, p.shape.width, results, [&](int64_t row, PartSums<C, 1>& sums, auto count) {
          backward_of_rows<T, kCentred, kStream, decltype(count)::value>(p, row, sums.end, sums.array(0), nullptr);
        });
  } else {
    C* const results[2] = {static_cast<C*>(p.dweight), static_cast<C*>(p.dbias)};
    sum_columns<C, 2, kAtOnce>(threads, p.shape.rows, p.shape.width, results,
                               [&](int64_t row, PartSums<C, 2>& sums, auto count) {
                                 backward_of_rows<T, kCentred, kStream, decltype(count)::value>(
                                     p, row, sums.end, p.dweight ? sums.array(0) : nullptr, sums.array(1));
                               });
  }
}

// fn.template operator()<T, kCentred, kStream>()
template <class Fn>
void specialise(const NormShape& shape, const Fn& fn) {
  with_element(shape.dtype, [&]<class T>(T) {
    const bool stream = shape.rows * shape.width * static_cast<int64_t>(sizeof(T)) >= kStreamBytes;
    if (shape.kind == NormKind::kLayer) {
      stream ? fn.template operator()<T, true, true>() : fn.template operator()<T, true, false>();
    } else {
      stream ? fn.template operator()<T, false, true>() : fn.template operator()<T, false, false>();
    }
  });
}

}  // namespace

void norm_forward(const NormFwdParams& p, const Threads& threads) {
  specialise(p.shape, [&]<class T, bool kCentred, bool kStream>() {
    for_each_block(threads, p.shape.rows, 2 * p.shape.width * static_cast<int64_t>(sizeof(T)),
                   [&](int64_t begin, int64_t end) { forward_rows<T, kCentred, kStream>(p, begin, end); });
  });
}

void norm_of_sum(const NormOfSumParams& p, const Threads& threads) {
  const NormShape& shape = p.norm.shape;
  with_element(shape.dtype, [&]<class T>(T) {
    const int64_t row_bytes = shape.width * static_cast<int64_t>(sizeof(T));
    const bool stream = shape.rows * row_bytes >= kStreamBytes;
    for_each_block(threads, shape.rows, 4 * row_bytes, [&](int64_t begin, int64_t end) {
      stream ? rows_of_sum<T, true>(p, begin, end) : rows_of_sum<T, false>(p, begin, end);
    });
  });
}

void norm_backward(const NormBwdParams& p, const Threads& threads) {
  specialise(p.shape, [&]<class T, bool kCentred, bool kStream>() { backward_rows<T, kCentred, kStream>(p, threads); });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
