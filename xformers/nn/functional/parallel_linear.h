// Linear layers whose weights are spread over the ranks of a process group, which is given by name.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

namespace xformers::nn {

// Features are dealt to the ranks in turn: feature j of rank r is feature r + j size of the whole layer.
struct ColumnParallelArguments {
  at::Tensor x;                      // [..., in], the same on all ranks; sequence_parallel: this rank's shard of dim 0
  std::vector<at::Tensor> weights;   // [out_i / size, in]
  std::vector<at::Tensor> biases{};  // [out_i / size]; none
  std::string group;
  bool gather_output =
      false;  // [..., out_i] on every rank, in the order of the whole layer, instead of [..., out_i / size]
  bool sequence_parallel = false, fuse_sequence_parallel = true;
};
std::vector<at::Tensor> column_parallel_linear(const ColumnParallelArguments& args);

struct RowParallelArguments {
  at::Tensor x;                      // [..., in / size]; [..., in], the same on all ranks, where it is not parallel
  at::Tensor weight;                 // [out, in / size]
  std::optional<at::Tensor> bias{};  // [out], the same on all ranks: added once, to the sum
  std::string group;
  bool input_is_parallel = true;
  bool sequence_parallel = false, fuse_sequence_parallel = true;  // the result is this rank's shard of dim 0
};
at::Tensor row_parallel_linear(const RowParallelArguments& args);

}  // namespace xformers::nn
