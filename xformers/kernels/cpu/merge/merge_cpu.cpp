// One task is a block of rows (batch, query, group, head); the weights of a row are computed in lse's dtype, its sums
// in fp32, or fp64 where a tensor is.
#include "xformers/kernels/cpu/merge/merge_cpu.h"

#include <algorithm>
#include <vector>

#include "xformers/kernels/base/dispatch.h"
#include "xformers/kernels/base/half.h"
#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/merge/shares.h"
#include "xformers/kernels/params/checks.h"

namespace xformers::cpu {
namespace {

template <class Fn>
void with_type(DType dtype, const Fn& fn) {
  dispatch_dtype<BFloat16, Float16>(dtype, fn);
}

// Where a row starts.
struct Row {
  int64_t batch, query, group, head;

  Row(const MergeShape& shape, int64_t index) {
    head = index % shape.heads_per_group;
    group = (index /= shape.heads_per_group) % shape.num_groups;
    query = (index /= shape.num_groups) % shape.seqlen;
    batch = index / shape.seqlen;
  }
  template <class T>
  T* in(const HeadsTensor& t) const {
    return static_cast<T*>(t.data) + t.offset(batch, query, group, head);
  }
};

// sum += weight * from
template <class C>
void add_row(DType dtype, const Row& row, const HeadsTensor& from, C weight, C* sum, int64_t dim) {
  with_type(dtype, [&]<class T>(T) {
    const T* x = row.in<T>(from);
    for (int64_t d = 0; d < dim; ++d) sum[d] += weight * static_cast<C>(to_compute(x[d]));
  });
}

// to = weight * from
template <class C>
void store_row(DType dtype, const Row& row, const HeadsTensor& to, C weight, const C* from, int64_t dim) {
  with_type(dtype, [&]<class T>(T) {
    T* x = row.in<T>(to);
    for (int64_t d = 0; d < dim; ++d) x[d] = from_compute<T>(weight == C(0) ? C(0) : weight * from[d]);
  });
}

template <class C>
C dot_row(DType dtype, const Row& row, const HeadsTensor& t, const C* with, int64_t dim) {
  C sum = 0;
  with_type(dtype, [&]<class T>(T) {
    const T* x = row.in<T>(t);
    for (int64_t d = 0; d < dim; ++d) sum += with[d] * static_cast<C>(to_compute(x[d]));
  });
  return sum;
}

template <class L>
PartStatistics<L> statistics_of(const MergePart& part, const Row& row) {
  return PartStatistics<L>::from_lse(*row.in<const L>(part.lse));
}

// W_i of a row; returns its lse. L: dtype of every lse.
template <class L>
L merge_weights(const MergeShape& shape, const MergePart* parts, const Row& row, L* weights) {
  const auto statistics = [&](int64_t i) { return statistics_of<L>(parts[i], row); };
  return merge_shares(shape.num_parts, L(1), statistics, weights).lse;
}

// fn(row, sum, weights, dots) for every row; the last three are buffers of head_dim, num_parts and num_parts.
template <class L, class Fn>
void for_each_row(const MergeShape& shape, const Threads& threads, const Fn& fn) {
  const auto run = [&]<class C>(C) {
    const int64_t row_bytes = (shape.num_parts + 1) * shape.head_dim * static_cast<int64_t>(size_of(shape.dtype));
    for_each_block(threads, shape.num_rows(), row_bytes, [&](int64_t begin, int64_t end) {
      std::vector<C> sum(shape.head_dim);
      std::vector<L> weights(shape.num_parts), dots(shape.num_parts);
      for (int64_t r = begin; r < end; ++r) fn(Row(shape, r), sum.data(), weights.data(), dots.data());
    });
  };
  if (shape.dtype == DType::kFloat64 || shape.out_dtype == DType::kFloat64) {
    run(double());
  } else {
    run(float());
  }
}

template <class L>
void forward(const MergeFwdParams& p, const Threads& threads) {
  const int64_t dim = p.shape.head_dim;
  for_each_row<L>(p.shape, threads, [&]<class C>(const Row& row, C* sum, L* weights, L*) {
    const L lse = merge_weights(p.shape, p.parts, row, weights);
    std::fill(sum, sum + dim, C(0));
    for (int64_t i = 0; i < p.shape.num_parts; ++i) {
      if (!statistics_of<L>(p.parts[i], row).saw_keys()) continue;
      add_row(p.shape.dtype, row, p.parts[i].out, static_cast<C>(weights[i]), sum, dim);
    }
    store_row(p.shape.out_dtype, row, p.out, C(1), sum, dim);
    if (p.lse.data) *row.in<L>(p.lse) = lse;
  });
}

template <class L>
void backward(const MergeBwdParams& p, const Threads& threads) {
  const int64_t dim = p.shape.head_dim;
  for_each_row<L>(p.shape, threads, [&]<class C>(const Row& row, C* dout, L* weights, L* dots) {
    merge_weights(p.shape, p.parts, row, weights);
    std::fill(dout, dout + dim, C(0));
    add_row(p.shape.out_dtype, row, p.dout, C(1), dout, dim);
    L mean = 0;
    for (int64_t i = 0; i < p.shape.num_parts; ++i) {
      store_row(p.shape.dtype, row, p.grads[i].out, static_cast<C>(weights[i]), dout, dim);
      if (!statistics_of<L>(p.parts[i], row).saw_keys()) continue;
      dots[i] = static_cast<L>(dot_row(p.shape.dtype, row, p.parts[i].out, dout, dim));
      mean += weights[i] * dots[i];
    }
    const L dlse = p.dlse.data ? *row.in<const L>(p.dlse) : L(0);
    for (int64_t i = 0; i < p.shape.num_parts; ++i) {
      const bool saw_keys = statistics_of<L>(p.parts[i], row).saw_keys();
      *row.in<L>(p.grads[i].lse) = saw_keys ? weights[i] * (dlse + dots[i] - mean) : L(0);
    }
  });
}

}  // namespace

void merge_forward(const MergeFwdParams& params, const Threads& threads) {
  check(params);
  params.shape.lse_dtype == DType::kFloat64 ? forward<double>(params, threads) : forward<float>(params, threads);
}

void merge_backward(const MergeBwdParams& params, const Threads& threads) {
  check(params);
  params.shape.lse_dtype == DType::kFloat64 ? backward<double>(params, threads) : backward<float>(params, threads);
}

}  // namespace xformers::cpu
