// Linear layers whose weights are spread over the ranks of a process group. A whole weight is initialised on every rank
// from the same random numbers, and a rank keeps its part: one seed gives the same whole layer for any number of ranks.
#pragma once

#include <torch/nn/cloneable.h>
#include <torch/nn/modules/container/parameterlist.h>
#include <torch/nn/pimpl.h>

#include <functional>
#include <string>
#include <vector>

#include "xformers/nn/state_dict.h"

namespace xformers::nn {

using InitMethod = std::function<void(at::Tensor whole)>;  // nullptr: xavier_normal_

struct ColumnParallelLinearOptions {
  int64_t in_features = 0;
  std::vector<int64_t> out_features{};  // of the whole layer, one for each result; multiples of the number of ranks
  std::string process_group{};          // its name
  bool bias = false;                    // begins as zero
  bool gather_output = false;           // every rank gets whole results
  bool sequence_parallel = false, fuse_sequence_parallel = true;  // the input is this rank's shard of dim 0
  InitMethod init_method = nullptr;
};

class ColumnParallelLinearImpl : public torch::nn::Cloneable<ColumnParallelLinearImpl> {
 public:
  explicit ColumnParallelLinearImpl(const ColumnParallelLinearOptions& options);  // xformers::Error
  void reset() override;

  std::vector<at::Tensor> forward(const at::Tensor& x);  // functional/parallel_linear.h

  // weights.i [out_i, in] and biases.i [out_i] of the whole layer, on every rank: of any number of ranks, for any.
  StateDict full_state_dict();
  void load_full_state_dict(const StateDict& state);

  ColumnParallelLinearOptions options;
  torch::nn::ParameterList weights{nullptr}, biases{nullptr};  // [out_i / ranks, in], [out_i / ranks]
};
TORCH_MODULE(ColumnParallelLinear);

struct RowParallelLinearOptions {
  int64_t in_features = 0, out_features = 0;  // of the whole layer; in_features is a multiple of the number of ranks
  std::string process_group{};
  bool bias = false;  // begins as zero; on every rank, added once
  bool input_is_parallel = true;
  bool sequence_parallel = false, fuse_sequence_parallel = true;  // the result is this rank's shard of dim 0
  InitMethod init_method = nullptr;
};

class RowParallelLinearImpl : public torch::nn::Cloneable<RowParallelLinearImpl> {
 public:
  explicit RowParallelLinearImpl(const RowParallelLinearOptions& options);
  void reset() override;

  at::Tensor forward(const at::Tensor& x);

  StateDict full_state_dict();  // weight [out, in], bias [out]
  void load_full_state_dict(const StateDict& state);

  RowParallelLinearOptions options;
  at::Tensor weight, bias;  // [out, in / ranks]; [out], or undefined
};
TORCH_MODULE(RowParallelLinear);

}  // namespace xformers::nn
