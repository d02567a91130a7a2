#include "xformers/nn/feedforward/mixture_of_experts.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/argsort.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/zeros.h>
#include <ATen/ops/zeros_like.h>

#include <numeric>

#include "xformers/nn/optional.h"
#include "xformers/ops/bias_act_dropout/bias_act_dropout_op.h"
#include "xformers/ops/common/check.h"
#include "xformers/ops/experts/experts.h"

namespace xformers::nn {
namespace {

std::vector<int64_t> to_list(const at::Tensor& numbers) {
  const at::Tensor on_cpu = numbers.to(at::kCPU).contiguous();
  const auto* data = on_cpu.const_data_ptr<int64_t>();
  return {data, data + on_cpu.numel()};
}

}  // namespace

MixtureOfExpertsImpl::MixtureOfExpertsImpl(const MixtureOfExpertsOptions& options_arg) : options(options_arg) {
  const ops::Check check("MixtureOfExperts");
  const int64_t experts = options.number_of_experts, processes = options.processes;
  if (experts < 1 || processes < 1 || experts % processes != 0) {
    check.fail("number_of_experts", std::to_string(experts),
               "a multiple of the number of processes, " + std::to_string(processes), "give each as many experts");
  }
  if (options.number_of_local_experts.value_or(experts / processes) != experts / processes) {
    check.fail("number_of_local_experts", std::to_string(*options.number_of_local_experts),
               std::to_string(experts / processes), "leave it out");
  }
  if (options.gate != "top_2" && options.gate != "round_robin") {
    check.fail("gate", "'" + options.gate + "'", "'round_robin' or 'top_2'", "choose one of them");
  }
  if (options.top_k < 1 || options.top_k > experts) {
    check.fail("top_k", std::to_string(options.top_k), "1 to the number of experts, " + std::to_string(experts),
               "choose fewer");
  }
  if (options.capacity_factor && !(*options.capacity_factor > 0)) {
    check.fail("capacity_factor", std::to_string(*options.capacity_factor), "a positive number, or none",
               "pass 1 for experts that hold an even share");
  }
  MixtureOfExpertsImpl::reset();
}

void MixtureOfExpertsImpl::reset() {
  const auto gate = register_module("gate", std::make_shared<torch::nn::Module>("gate"));
  if (options.gate == "top_2") {
    wg_ = gate->register_module(
        "wg", torch::nn::Linear(torch::nn::LinearOptions(options.dim_model, options.number_of_experts).bias(false)));
  }
  experts_ = torch::nn::ModuleList();
  for (int64_t i = 0; i < options.number_of_experts / options.processes; ++i) {
    experts_->push_back(MLP(MLPOptions{options.dim_model, options.dropout, options.activation,
                                       options.hidden_layer_multiplier, options.bias}));
  }
  register_module("moe", std::make_shared<torch::nn::Module>("moe"))->register_module("experts", experts_);
}

at::Tensor MixtureOfExpertsImpl::here(const at::Tensor& rows, const at::Tensor& counts) {
  std::vector<at::Tensor> w1, b1, w2, b2;
  for (const auto& expert : *experts_) {
    const auto& layers = expert->as<MLPImpl>()->mlp;
    const auto &first = layers->at<torch::nn::LinearImpl>(0), &last = layers->at<torch::nn::LinearImpl>(1);
    w1.push_back(first.weight);
    w2.push_back(last.weight);
    if (options.bias) b1.push_back(first.bias);
    if (options.bias) b2.push_back(last.bias);
  }
  Activation activation = ops::to_activation("MixtureOfExperts", options.activation);
  const double p = is_training() ? options.dropout : 0;
  if (activation != Activation::kGelu || rows.is_cpu()) {
    if (activation == Activation::kGelu) activation = Activation::kGeluExact;
    return ops::experts_mlp(rows, counts, w1, b1, w2, b2, activation, p);
  }
  std::vector<at::Tensor> done;  // the exact gelu elsewhere: expert by expert
  int64_t first = 0, i = 0;
  for (int64_t n : to_list(counts)) {
    done.push_back(experts_[i++]->as<MLPImpl>()->forward(rows.narrow(0, first, n)));
    first += n;
  }
  done.push_back(at::zeros_like(rows.narrow(0, first, rows.size(0) - first)));
  return at::cat(done);
}

// Numbers of rows first; then the rows, which arrive by rank and, from each, by expert.
at::Tensor MixtureOfExpertsImpl::everywhere(const at::Tensor& rows, const at::Tensor& counts) {
  const int64_t ranks = options.processes, local = options.number_of_experts / ranks;
  if (ranks == 1) return here(rows, counts);
  const std::vector<int64_t> even(ranks, local);
  const at::Tensor arriving = ops::exchange_rows(counts, even, even, options.group);
  const std::vector<int64_t> sent = to_list(counts.view({ranks, local}).sum(1)),
                             received = to_list(arriving.view({ranks, local}).sum(1));
  const int64_t total = std::accumulate(sent.begin(), sent.end(), int64_t{0});
  const at::Tensor arrived = ops::exchange_rows(rows.narrow(0, 0, total), received, sent, options.group);
  const at::Tensor expert = at::arange(local, counts.options()).repeat({ranks}).repeat_interleave(arriving);
  const at::Tensor order = at::argsort(expert, /*stable=*/true);
  const at::Tensor back = at::empty_like(order).scatter_(0, order, at::arange(order.size(0), order.options()));
  const at::Tensor done =
      here(ops::experts_gather(arrived, order, back.unsqueeze(1)), arriving.view({ranks, local}).sum(0));
  const at::Tensor out =
      ops::exchange_rows(ops::experts_gather(done, back, order.unsqueeze(1)), sent, received, options.group);
  return at::cat({out, at::zeros_like(rows.narrow(0, 0, rows.size(0) - total))});
}

at::Tensor MixtureOfExpertsImpl::forward(const at::Tensor& x) {
  const at::Tensor by_position = x.transpose(0, 1);  // tokens are counted sequence first
  const at::Tensor tokens = by_position.reshape({-1, options.dim_model});
  ops::ExpertPlaces places;
  std::optional<at::Tensor> weights;
  if (wg_.is_empty()) {
    const at::Tensor numbers = at::arange(tokens.size(0), tokens.options().dtype(at::kLong));
    places = ops::expert_places(numbers.remainder(options.number_of_experts).unsqueeze(1), options.number_of_experts,
                                std::nullopt);
    aux_loss = at::zeros({}, tokens.options());
  } else {
    const at::Tensor logits = wg_->forward(tokens);
    std::optional<int64_t> capacity;
    if (options.capacity_factor) {
      capacity = static_cast<int64_t>(*options.capacity_factor * static_cast<double>(options.top_k * tokens.size(0)) /
                                      static_cast<double>(options.number_of_experts));
    }
    std::optional<at::Tensor> noise;
    if (options.top_k > 1) noise = at::empty_like(logits, at::kFloat).exponential_().log_().neg_();
    ops::ExpertRoutes routes = ops::route_top_k(logits, options.top_k, capacity, noise);
    aux_loss = routes.aux_loss;
    weights = routes.weights;
    places = std::move(routes.places);
  }
  const at::Tensor rows = everywhere(ops::experts_gather(tokens, places.tokens, places.slots), places.counts);
  return ops::experts_combine(rows, places.tokens, places.slots, weights).view(by_position.sizes()).transpose(0, 1);
}

}  // namespace xformers::nn
