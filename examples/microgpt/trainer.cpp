#include "examples/microgpt/trainer.h"

#include <torch/nn/utils/clip_grad.h>

#include <numbers>

#include "examples/microgpt/autocast.h"
#include "examples/microgpt/memory_meter.h"

namespace microgpt {

Trainer::Trainer(const ModelOptions& model, const ComputeOptions& compute, double weight_decay, uint64_t seed)
    : compute_(compute) {
  torch::manual_seed(seed);
  model_ = std::make_shared<Gpt>(model, compute);
  model_->to(device_of(compute));
  model_->checkpoint_blocks(compute.checkpoint_blocks);

  // Weight decay is for matrices; gains and offsets of the norms go without.
  std::vector<at::Tensor> matrices, vectors;
  for (const at::Tensor& parameter : model_->parameters())
    (parameter.dim() < 2 ? vectors : matrices).push_back(parameter);
  const auto group = [](std::vector<at::Tensor> parameters, double decay) {
    auto options = std::make_unique<torch::optim::AdamWOptions>();
    options->betas({0.9, 0.95}).weight_decay(decay);
    return torch::optim::OptimizerParamGroup(std::move(parameters), std::move(options));
  };
  optimizer_ = std::make_unique<torch::optim::AdamW>(
      std::vector<torch::optim::OptimizerParamGroup>{group(matrices, weight_decay), group(vectors, 0)});
}

at::Tensor Trainer::loss(const Batch& batch) {
  const at::Device device = device_of(compute_);
  const Autocast autocast(compute_);
  const at::Tensor logits = model_->forward(batch.input.to(device));
  return at::cross_entropy_loss(logits.to(at::kFloat).view({-1, kVocabulary}), batch.next.reshape({-1}).to(device));
}

double Trainer::step(const Batch& batch, double learning_rate) {
  model_->train();
  for (auto& group : optimizer_->param_groups()) group.options().set_lr(learning_rate);
  const at::Tensor nats = loss(batch);
  nats.backward();
  torch::nn::utils::clip_grad_norm_(model_->parameters(), 1.0);
  optimizer_->step();
  optimizer_->zero_grad();
  return nats.item<double>() / std::numbers::ln2;
}

int64_t Trainer::step_bytes(const Batch& batch, bool checkpoint_blocks) {
  std::vector<at::Generator> generators{at::globalContext().defaultGenerator(at::kCPU)};
  if (!device_of(compute_).is_cpu()) generators.push_back(at::globalContext().defaultGenerator(device_of(compute_)));
  std::vector<at::Tensor> states;
  for (const at::Generator& generator : generators) states.push_back(generator.get_state());
  model_->train();
  model_->checkpoint_blocks(checkpoint_blocks);
  int64_t bytes = 0;
  {
    const MemoryMeter meter;
    loss(batch).backward();
    bytes = meter.peak_bytes();
  }
  optimizer_->zero_grad();
  model_->checkpoint_blocks(compute_.checkpoint_blocks);
  for (size_t i = 0; i < generators.size(); ++i) generators[i].set_state(states[i]);
  return bytes;
}

double Trainer::evaluate(const Batch& batch) {
  torch::NoGradGuard no_grad;
  model_->eval();
  constexpr int64_t kWindows = 8;
  double nats = 0;
  const auto inputs = batch.input.split(kWindows), nexts = batch.next.split(kWindows);
  for (size_t i = 0; i < inputs.size(); ++i) {
    nats += loss({inputs[i], nexts[i]}).item<double>() * static_cast<double>(inputs[i].size(0));
  }
  return nats / static_cast<double>(batch.input.size(0)) / std::numbers::ln2;
}

}  // namespace microgpt
