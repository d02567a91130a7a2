#include "xformers/ops/sequence_parallel/products.h"

#include <ATen/ops/_scaled_mm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>

#include "xformers/ops/common/product.h"

namespace xformers::ops {
namespace {

using parallel::Pattern;
using parallel::Step;

bool overlaps(const Group& group, Pattern pattern, int64_t rows, const at::Tensor& x,
              const std::vector<Factor>& factors, const SpreadOptions& options) {
  if (!options.fuse || group.size == 1 || rows == 0 || !group.may_overlap()) return false;
  parallel::SpreadProduct product{pattern, group.size, rows, x.size(1), 0, static_cast<int64_t>(x.element_size())};
  for (const Factor& factor : factors) product.n += factor.matrix.size(1);
  if (pattern == Pattern::kScatter && !factors.empty()) {
    product.element_size = static_cast<int64_t>(c10::elementSize(factors[0].dtype()));
  }
  return choose(product, parallel::rates_of(x.is_cuda(), static_cast<int64_t>(x.element_size()))).overlap;
}

}  // namespace

at::Tensor Factor::times(const at::Tensor& left) const {
  if (!scale_left) return product(left, matrix);
  return at::_scaled_mm(left, matrix, *scale_left, *scale_right, {}, {}, out_dtype);
}

void Factor::times_into(const at::Tensor& out, const at::Tensor& left) const {
  at::Tensor result = out;
  if (!scale_left) {
    at::mm_out(result, left, matrix);
  } else {
    at::_scaled_mm_out(result, left, matrix, *scale_left, *scale_right, {}, {}, out_dtype);
  }
}

void gather_and_multiply(const Group& group, const at::Tensor& x_arg, const std::vector<Factor>& factors,
                         const std::vector<at::Tensor>& out, const SpreadOptions& options,
                         std::vector<at::Tensor>* gathered) {
  constexpr const char* kGathering = "gathering the input";
  const at::Tensor x = x_arg.contiguous();
  const int64_t rows = x.size(0);
  const auto multiply = [&](const at::Tensor& left, int64_t first) {
    for (size_t i = 0; i < factors.size(); ++i) {
      factors[i].times_into(out[i].narrow(0, first, left.size(0)), left);
    }
  };
  if (!overlaps(group, Pattern::kGather, rows, x, factors, options)) {
    const at::Tensor all =
        options.copy ? group.start_gather(kGathering, x) : at::empty({group.size * rows, x.size(1)}, x.options());
    if (options.copy) group.wait(kGathering, all);
    multiply(all, 0);
    if (gathered) *gathered = {all};
    return;
  }
  // All shards leave at once, so a rank that fails in between keeps nobody waiting.
  const std::vector<Step> steps = parallel::overlapped_steps(Pattern::kGather, group.size, group.rank);
  std::vector<at::Tensor> arriving;
  for (const Step& step : steps) {
    const bool travels = step.send_to >= 0 && options.copy;
    arriving.push_back(travels ? group.start_shift(kGathering, x, step.send_to, step.receive_from) : x);
  }
  if (gathered) gathered->resize(group.size);
  for (size_t i = 0; i < steps.size(); ++i) {
    if (steps[i].send_to >= 0 && options.copy && options.wait) group.wait(kGathering, arriving[i]);
    multiply(arriving[i], steps[i].rank * rows);
    if (gathered) (*gathered)[steps[i].rank] = arriving[i];
    if (options.wait) arriving[i] = at::Tensor();
  }
  for (const at::Tensor& shard : arriving) {
    if (shard.defined() && options.copy) group.wait(kGathering, shard);
  }
}

at::Tensor start_sum_of_rows(const Group& group, const char* step, const at::Tensor& summands) {
  return group.start_exchange(step, summands);
}

at::Tensor finish_sum_of_rows(const Group& group, const char* step, const at::Tensor& moved) {
  group.wait(step, moved);
  std::vector<at::Tensor> parts;
  const int64_t rows = moved.size(0) / group.size;
  for (int64_t i = 0; i < group.size; ++i) parts.push_back(moved.narrow(0, i * rows, rows));
  return sum_in_order(parts);
}

void multiply_and_scatter(const Group& group, const at::Tensor& x, const std::vector<Factor>& factors,
                          const std::vector<at::Tensor>& out, const SpreadOptions& options) {
  constexpr const char* kSumming = "summing the results";
  const int64_t rows = x.size(0) / group.size;
  if (group.size == 1) {
    for (size_t i = 0; i < factors.size(); ++i) factors[i].times_into(out[i], x);
    return;
  }
  if (!overlaps(group, Pattern::kScatter, rows, x, factors, options)) {
    std::vector<at::Tensor> moved;
    for (const Factor& factor : factors) {
      const at::Tensor summands = factor.times(x);
      moved.push_back(options.copy ? start_sum_of_rows(group, kSumming, summands) : summands);
    }
    for (size_t i = 0; i < factors.size(); ++i) out[i].copy_(finish_sum_of_rows(group, kSumming, moved[i]));
    return;
  }
  std::vector<std::vector<at::Tensor>> parts(factors.size(), std::vector<at::Tensor>(group.size));  // by rank
  const std::vector<Step> steps = parallel::overlapped_steps(Pattern::kScatter, group.size, group.rank);
  for (const Step& step : steps) {
    const bool travels = step.send_to >= 0 && options.copy;
    for (size_t i = 0; i < factors.size(); ++i) {
      const at::Tensor summand = factors[i].times(x.narrow(0, step.rank * rows, rows));
      const int64_t from = step.send_to >= 0 ? step.receive_from : group.rank;
      parts[i][from] = travels ? group.start_shift(kSumming, summand, step.send_to, step.receive_from) : summand;
    }
  }
  for (size_t i = 0; i < factors.size(); ++i) {
    for (int64_t from = 0; from < group.size; ++from) {
      if (from != group.rank && options.copy) group.wait(kSumming, parts[i][from]);
    }
    out[i].copy_(sum_in_order(parts[i]));
  }
}

}  // namespace xformers::ops
