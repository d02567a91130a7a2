// Model and optimiser: one step forward, backward and update; and the loss without learning.
#pragma once

#include <torch/optim/adamw.h>

#include <memory>

#include "examples/microgpt/dataset.h"
#include "examples/microgpt/model.h"
#include "examples/microgpt/options.h"

namespace microgpt {

class Trainer {
 public:
  Trainer(const ModelOptions& model, const ComputeOptions& compute, double weight_decay, uint64_t seed);

  double step(const Batch& batch, double learning_rate);  // loss before the update, in bits per byte
  double evaluate(const Batch& batch);                    // loss, in bits per byte; a few windows at a time

  // What forward and backward allocate at their fullest moment, gradients included; changes nothing.
  int64_t step_bytes(const Batch& batch, bool checkpoint_blocks);

  const std::shared_ptr<Gpt>& model() const { return model_; }
  torch::optim::AdamW& optimizer() { return *optimizer_; }

 private:
  at::Tensor loss(const Batch& batch);  // mean of -ln p

  ComputeOptions compute_;
  std::shared_ptr<Gpt> model_;
  std::unique_ptr<torch::optim::AdamW> optimizer_;
};

}  // namespace microgpt
