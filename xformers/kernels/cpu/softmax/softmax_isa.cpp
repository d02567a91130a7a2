// Softmax row by row: maximum, powers and their sum, result. A row is read from memory once and then found in the
// cache; its powers wait in a buffer in the compute type. Compiled once per instruction set.
#include <cmath>

#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/base/exp-inl.h"
#include "xformers/kernels/cpu/base/scratch.h"
#include "xformers/kernels/cpu/softmax/softmax_cpu.h"

HWY_BEFORE_NAMESPACE();
namespace xformers::cpu::XFORMERS_ISA_NAMESPACE {
namespace {

template <class C>
inline constexpr C kInfinity = static_cast<C>(__builtin_inf());

// v with -inf in the lanes that don't count.
template <class C>
HWY_INLINE Vec<C> only_n_or_lowest(Vec<C> v, Whole) {
  return v;
}
template <class C>
HWY_INLINE Vec<C> only_n_or_lowest(Vec<C> v, ptrdiff_t n) {
  const Tag<C> d;
  return hn::IfThenElse(hn::FirstN(d, static_cast<size_t>(n)), v, hn::Set(d, -kInfinity<C>));
}

// One row of [outer0, outer1, rows, width], counted through.
struct RowPlace {
  int64_t outer0, outer1, row;
};
HWY_INLINE RowPlace place_of(const SoftmaxShape& shape, int64_t index) {
  const int64_t outer = index / shape.rows;
  return {outer / shape.outer1, outer % shape.outer1, index % shape.rows};
}
HWY_INLINE ptrdiff_t visible_columns(const SoftmaxShape& shape, int64_t row) {
  return shape.causal ? min_of(row + 1, shape.width) : shape.width;
}

// scores(i, n): x + mask; next: a later row of x, prefetched meanwhile; powers: room for the row.
template <bool kStream, class T, class Scores>
HWY_INLINE void forward_row(const SoftmaxShape& shape, ptrdiff_t visible, const Scores& scores, const T* next,
                            Compute<T>* HWY_RESTRICT powers, T* HWY_RESTRICT out) {
  using C = Compute<T>;
  const Tag<C> d;
  Vec<C> highest[4];
  for (auto& v : highest) v = hn::Set(d, -kInfinity<C>);
  ptrdiff_t i = 0;
  for (; i + 4 * lanes<C>() <= visible; i += 4 * lanes<C>()) {
    for (int k = 0; k < 4; ++k) highest[k] = hn::Max(highest[k], scores(i + k * lanes<C>(), Whole()));
  }
  for_each_vec<C>(visible - i, [&](ptrdiff_t j, auto n) {
    highest[0] = hn::Max(highest[0], only_n_or_lowest<C>(scores(i + j, n), n));
  });
  const auto all = hn::Max(hn::Max(highest[0], highest[1]), hn::Max(highest[2], highest[3]));
  const auto top = hn::MaxOfLanes(d, all);  // -inf: every power below is NaN, and so is the row

  double sum[1];
  sum_row<C>(visible, sum, [&](ptrdiff_t j, auto n, Vec<C>* sums) {
    if constexpr (kStream) prefetch(next + j);
    const auto power = only_n(exp_below_zero<T>(hn::Sub(scores(j, n), top)), n);
    if (!shape.log) store_n(power, powers + j, n);
    sums[0] = hn::Add(sums[0], power);
  });
  const auto hidden = [&](C value) {
    map_row<kStream>(out + visible, shape.width - visible, [&](ptrdiff_t, auto) { return hn::Set(d, value); });
  };
  if (shape.log) {
    const auto log_sum = hn::Set(d, static_cast<C>(std::log(sum[0])));
    map_row<kStream>(out, visible, [&](ptrdiff_t j, auto n) { return hn::Sub(hn::Sub(scores(j, n), top), log_sum); });
    hidden(-kInfinity<C> - static_cast<C>(sum[0]));
  } else {
    const auto factor = hn::Set(d, static_cast<C>(1 / sum[0]));
    map_row<kStream>(out, visible, [&](ptrdiff_t j, auto n) { return hn::Mul(load_n(powers + j, n), factor); });
    hidden(C(0) * static_cast<C>(sum[0]));
  }
}

// Softmax: dx = y * (dy - sum(dy * y)); log: dx = dy - exp(y) * sum(dy).
// `next` elements behind these lies a later row, which is prefetched meanwhile.
template <bool kStream, class T>
HWY_INLINE void backward_row(const SoftmaxShape& shape, ptrdiff_t visible, ptrdiff_t next, const T* HWY_RESTRICT out,
                             const T* HWY_RESTRICT dout, T* HWY_RESTRICT dx) {
  using C = Compute<T>;
  const Tag<C> d;
  double sum[1];
  sum_row<C>(visible, sum, [&](ptrdiff_t i, auto n, Vec<C>* sums) {
    const auto gradient = load_n(dout + i, n);
    sums[0] = shape.log ? hn::Add(sums[0], gradient) : hn::MulAdd(gradient, load_n(out + i, n), sums[0]);
  });
  const auto total = hn::Set(d, static_cast<C>(sum[0]));
  const auto fetch = [&](ptrdiff_t i) {
    if constexpr (kStream) {
      prefetch(out + next + i);
      prefetch(dout + next + i);
    }
  };
  if (shape.log) {
    map_row<kStream>(dx, visible, [&](ptrdiff_t i, auto n) {
      fetch(i);
      return hn::NegMulAdd(exp_below_zero<T>(load_n(out + i, n)), total, load_n(dout + i, n));
    });
  } else {
    map_row<kStream>(dx, visible, [&](ptrdiff_t i, auto n) {
      fetch(i);
      return hn::Mul(load_n(out + i, n), hn::Sub(load_n(dout + i, n), total));
    });
  }
  map_row<kStream>(dx + visible, shape.width - visible, [&](ptrdiff_t, auto) { return hn::Zero(d); });
}

// row(index, next, worker) for all rows, in parallel; the row `next` behind index follows soon enough to be worth
// asking for now.
template <class T, class Fn>
void for_each_row(const SoftmaxShape& shape, int64_t tensors, const Threads& threads, const Fn& row) {
  const int64_t count = shape.outer0 * shape.outer1 * shape.rows;
  const int64_t row_bytes = shape.width * static_cast<int64_t>(sizeof(T)), moved_bytes = tensors * row_bytes;
  const int64_t block = max_of(block_bytes(count * moved_bytes) / moved_bytes, 1);
  const int64_t ahead = (kPrefetchBytes + row_bytes - 1) / row_bytes;
  for_each_task(threads, (count + block - 1) / block, [&](int64_t task, int worker) {
    const int64_t end = min_of((task + 1) * block, count);
    for (int64_t index = task * block; index < end; ++index) row(index, min_of(ahead, end - 1 - index), worker);
    finish_streams();
  });
}

template <class T, bool kStream>
void forward(const SoftmaxFwdParams& p, const Threads& threads) {
  using C = Compute<T>;
  const SoftmaxShape& shape = p.shape;
  Arena sizes;
  sizes.take<C>(shape.log ? 0 : shape.width);
  const size_t row_bytes = sizes.bytes();
  const ThreadScratch scratch(row_bytes * threads.num_threads);
  for_each_row<T>(shape, 2, threads, [&](int64_t index, int64_t next, int worker) {
    const RowPlace place = place_of(shape, index);
    const ptrdiff_t visible = visible_columns(shape, place.row);
    C* const powers = reinterpret_cast<C*>(scratch.data() + worker * row_bytes);
    const T* HWY_RESTRICT x = static_cast<const T*>(p.x) + index * shape.width;
    T* HWY_RESTRICT out = static_cast<T*>(p.out) + index * shape.width;
    const T* const next_x = x + next * shape.width;
    if (p.mask.data) {
      const T* HWY_RESTRICT mask = static_cast<const T*>(p.mask.data) + place.outer0 * p.mask.outer0_stride +
                                   place.outer1 * p.mask.outer1_stride + place.row * p.mask.row_stride;
      const auto scores = [&](ptrdiff_t i, auto n) { return hn::Add(load_n(x + i, n), load_n(mask + i, n)); };
      forward_row<kStream, T>(shape, visible, scores, next_x, powers, out);
    } else {
      const auto scores = [&](ptrdiff_t i, auto n) { return load_n(x + i, n); };
      forward_row<kStream, T>(shape, visible, scores, next_x, powers, out);
    }
  });
}

template <class T, bool kStream>
void backward(const SoftmaxBwdParams& p, const Threads& threads) {
  for_each_row<T>(p.shape, 3, threads, [&](int64_t index, int64_t next, int) {
    const int64_t at = index * p.shape.width;
    backward_row<kStream, T>(p.shape, visible_columns(p.shape, index % p.shape.rows), next * p.shape.width,
                             static_cast<const T*>(p.out) + at, static_cast<const T*>(p.dout) + at,
                             static_cast<T*>(p.dx) + at);
  });
}

// fn.template operator()<T, kStream>()
template <class Fn>
void specialise(const SoftmaxShape& s, const Fn& fn) {
  with_element(s.dtype, [&]<class T>(T) {
    const int64_t bytes = s.outer0 * s.outer1 * s.rows * s.width * static_cast<int64_t>(sizeof(T));
    bytes >= kStreamBytes ? fn.template operator()<T, true>() : fn.template operator()<T, false>();
  });
}

}  // namespace

void softmax_forward(const SoftmaxFwdParams& p, const Threads& threads) {
  specialise(p.shape, [&]<class T, bool kStream>() { forward<T, kStream>(p, threads); });
}

void softmax_backward(const SoftmaxBwdParams& p, const Threads& threads) {
  specialise(p.shape, [&]<class T, bool kStream>() { backward<T, kStream>(p, threads); });
}

}  // namespace xformers::cpu::XFORMERS_ISA_NAMESPACE
HWY_AFTER_NAMESPACE();
