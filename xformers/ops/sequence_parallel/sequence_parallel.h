// Products over the ranks of a process group. Groups are given by name: `group->getGroupName()` in C++ after
// c10d::register_process_group, `group.group_name` in Python. Shards are slices of dim 0 by rank. Every rank of a group
// calls alike; a first call of a kind compares what the ranks call with (xformers::Error on all of them where it
// differs). Sums over ranks are made in fp32 (fp64 for fp64), in the order of ranks, and rounded once. Failures of the
// transport are xformers::DeviceError and name operation, step, group and rank.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <string>
#include <vector>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// ---- with gradients ----
// Column-parallel: x is this rank's shard [S / size, ..., K], weights [K, N_i] are this rank's columns. out_i is
// all-gather(x) w_i, [S, ..., N_i]. fuse: transfers may hide behind products split by rank, where that is predicted to
// be faster; the result is the same. x is gathered again in backward instead of being kept.
std::vector<at::Tensor> sequence_parallel_leading_matmul(const at::Tensor& x, at::TensorList weights, bool fuse,
                                                         const std::string& group);

// Row-parallel: x [S, ..., K], weight [K, N] are this rank's columns and rows. This rank's rows of the sum over ranks
// of x w: [S / size, ..., N]. S must be a multiple of the number of ranks.
at::Tensor sequence_parallel_trailing_matmul(const at::Tensor& x, const at::Tensor& weight, bool fuse,
                                             const std::string& group);

// x w_i for an x that all ranks have: x [..., K], weights [N_i, K]. Backward sums dx over the ranks, behind the
// products for dw.
std::vector<at::Tensor> column_parallel_matmul(const at::Tensor& x, at::TensorList weights, const std::string& group);

// Adjoint pairs: gather_rows and sum_rows, copy_to_ranks and sum_over_ranks, gather_columns and take_columns. Columns
// are dealt in turn: column j of rank r is column r + j size of the whole.
at::Tensor gather_rows(const at::Tensor& x, const std::string& group);     // [n, ...] -> [size n, ...]
at::Tensor sum_rows(const at::Tensor& x, const std::string& group);        // [size n, ...] -> [n, ...]
at::Tensor copy_to_ranks(const at::Tensor& x, const std::string& group);   // x; backward: the sum over ranks
at::Tensor sum_over_ranks(const at::Tensor& x, const std::string& group);  // the sum; backward: the gradient
at::Tensor gather_columns(const at::Tensor& x, const std::string& group);  // [..., n] -> [..., size n]
at::Tensor take_columns(const at::Tensor& x, const std::string& group);    // [..., size n] -> [..., n]

// A rank's part of a whole weight, dealt in turn along dim, as a copy; and the whole from all parts (no gradients).
at::Tensor part_of_whole(const at::Tensor& whole, int64_t dim, const std::string& group);
at::Tensor whole_of_parts(const at::Tensor& part, int64_t dim, const std::string& group);

// ---- without gradients ----
struct FusedLinearOptions {
  std::optional<at::Tensor> scale_input{};  // fp8 inputs: scales of input and weights, fp32 [] each
  std::vector<at::Tensor> scale_weights{};
  std::optional<at::ScalarType> out_dtype{};  // required with scales
  std::vector<at::Tensor> out{};              // written where given
  int64_t num_stripes = 1;                    // one number for a group; has no effect on collectives
};

// scattered_input [n, ..., K], weights [N_i, K]: all-gather(scattered_input) w_i^T, [size n, ..., N_i].
std::vector<at::Tensor> fused_allgather_and_linear(const at::Tensor& scattered_input, at::TensorList weights,
                                                   const std::string& group, const FusedLinearOptions& options = {});

// gathered_input [size n, ..., K], weights [N_i, K]: this rank's rows of the sum over ranks of gathered_input w_i^T,
// [n, ..., N_i].
std::vector<at::Tensor> fused_linear_and_reducescatter(const at::Tensor& gathered_input, at::TensorList weights,
                                                       const std::string& group,
                                                       const FusedLinearOptions& options = {});

}  // namespace xformers::ops
