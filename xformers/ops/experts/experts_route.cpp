// Choices, places and weights of experts, from LibTorch's operators: differentiable, and the same on every device.
#include <ATen/TensorOperators.h>
#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/searchsorted.h>
#include <ATen/ops/softmax.h>
#include <ATen/ops/stack.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <limits>

#include "xformers/ops/common/check.h"
#include "xformers/ops/experts/experts.h"

namespace xformers::ops {

ExpertPlaces expert_places(const at::Tensor& choices, int64_t num_experts, std::optional<int64_t> capacity) {
  const Check check("expert_places");
  check.dims("choices", choices, 2, "[tokens, choices]");
  if (num_experts < 1) check.fail("num_experts", std::to_string(num_experts), "at least 1", "give the layer experts");
  if (capacity && *capacity < 0) {
    check.fail("capacity", std::to_string(*capacity), "a number of tokens, or none", "leave it out to drop nothing");
  }
  const c10::SymInt tokens = choices.sym_size(0), k = choices.sym_size(1), rows = tokens * k;
  // All first choices, then all second ones; a stable order keeps them so within each expert.
  const auto [keys, order] = choices.t().reshape_symint({rows}).sort(/*stable=*/true, /*dim=*/0, /*descending=*/false);
  const at::Tensor experts = at::arange(num_experts, choices.options());
  const at::Tensor starts = at::searchsorted(keys, experts);
  const at::Tensor counts = at::searchsorted(keys, experts, /*out_int32=*/false, /*right=*/true) - starts;
  const at::Tensor row = at::arange(rows, choices.options());
  const auto in_order_of_choices = [&](const at::Tensor& sorted) {  // [T, k]
    return at::empty_like(sorted).scatter_(0, order, sorted).view_symint({k, tokens}).t().contiguous();
  };
  if (!capacity) {
    return {order.remainder(tokens), in_order_of_choices(row), counts,
            at::ones({1, 1}, choices.options().dtype(at::kBool)).expand_symint({tokens, k})};
  }
  const at::Tensor place = row - starts.index_select(0, keys), kept = place < *capacity;
  const at::Tensor kept_counts = counts.clamp_max(*capacity), ends = kept_counts.cumsum(0);
  const at::Tensor dropped = kept.logical_not();
  const at::Tensor behind = ends.select(0, num_experts - 1) + dropped.cumsum(0) - 1;
  const at::Tensor slot = at::where(kept, (ends - kept_counts).index_select(0, keys) + place, behind);
  return {at::empty_like(order).scatter_(0, slot, order.remainder(tokens)), in_order_of_choices(slot), kept_counts,
          in_order_of_choices(kept)};
}

ExpertRoutes route_top_k(const at::Tensor& logits, int64_t k, std::optional<int64_t> capacity,
                         const OptionalTensor& noise) {
  const Check check("route_top_k");
  check.floating("logits", logits);
  check.dims("logits", logits, 2, "[tokens, experts]");
  const int64_t experts = logits.size(1);
  if (k < 1 || k > experts) {
    check.fail("k", std::to_string(k), "1 to " + std::to_string(experts) + ", the number of experts",
               "choose fewer experts per token");
  }
  if (noise) check.shape("noise", *noise, logits.sym_sizes(), "one number per token and expert");
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  const at::ScalarType dtype = compute_dtype(logits);
  const at::Tensor gates = at::softmax(logits, -1, dtype);
  at::Tensor left = gates.detach();
  std::vector<at::Tensor> chosen;
  for (int64_t i = 0; i < k; ++i) {
    if (i == 1) left = noise ? logits.detach().to(dtype) + *noise : logits.detach().to(dtype);
    if (i == 1) left = left.scatter(1, chosen[0].unsqueeze(1), -std::numeric_limits<double>::infinity());
    if (i > 1) left = left.scatter(1, chosen.back().unsqueeze(1), -std::numeric_limits<double>::infinity());
    chosen.push_back(left.argmax(1));
  }
  const at::Tensor choices = at::stack(chosen, 1);
  ExpertPlaces places = expert_places(choices, experts, capacity);
  at::Tensor weights = gates.gather(1, choices) * places.kept;
  if (k > 1) {
    const double least = dtype == at::kDouble ? std::numeric_limits<double>::epsilon()
                                              : static_cast<double>(std::numeric_limits<float>::epsilon());
    weights = weights / weights.sum(1, /*keepdim=*/true).clamp_min(least);
  }
  const at::Tensor first = at::zeros({experts}, gates.options())
                               .scatter_add_(0, chosen[0], at::ones({1}, gates.options()).expand_as(chosen[0]));
  const at::Tensor aux_loss = (gates.mean(0) * (first / logits.sym_size(0))).mean();
  return {choices, weights, aux_loss, std::move(places)};
}

}  // namespace xformers::ops
