// Products spread over the ranks of a group, their transfers beside them (schedule.h). Matrices are 2-D.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>
#include <vector>

#include "xformers/ops/common/check.h"
#include "xformers/ops/sequence_parallel/process_group.h"
#include "xformers/ops/sequence_parallel/schedule.h"

namespace xformers::ops {

// The right side of a product. fp8: with the scale of the whole left and the whole right side, and the result's dtype.
struct Factor {
  at::Tensor matrix;  // [K, N]
  OptionalTensor scale_left{}, scale_right{};
  std::optional<at::ScalarType> out_dtype{};

  at::ScalarType dtype() const { return out_dtype.value_or(matrix.scalar_type()); }
  at::Tensor times(const at::Tensor& left) const;                        // [rows, K] -> [rows, N]
  void times_into(const at::Tensor& out, const at::Tensor& left) const;  // out: contiguous rows
};

// What a call may leave out, to bound its time from below. Its results are then undefined.
struct SpreadOptions {
  bool fuse = true, wait = true, copy = true;
};

// Every factor with all rows: x is this rank's shard [n, K], out[i] is [size n, N_i], written. `gathered`, where it is
// given, gets the rows: all in one tensor, or those of each rank.
void gather_and_multiply(const Group& group, const at::Tensor& x, const std::vector<Factor>& factors,
                         const std::vector<at::Tensor>& out, const SpreadOptions& options,
                         std::vector<at::Tensor>* gathered = nullptr);

// The sum over ranks of x times each factor, this rank's rows: x [size n, K], out[i] [n, N_i], written. Summands travel
// in out's dtype, are added in fp32 in the order of ranks, and rounded once.
void multiply_and_scatter(const Group& group, const at::Tensor& x, const std::vector<Factor>& factors,
                          const std::vector<at::Tensor>& out, const SpreadOptions& options);

// Of a sum over ranks whose summands have been computed: starts moving them / waits and adds. summands: [size n, ...].
at::Tensor start_sum_of_rows(const Group& group, const char* step, const at::Tensor& summands);
at::Tensor finish_sum_of_rows(const Group& group, const char* step, const at::Tensor& moved);  // [n, ...]

}  // namespace xformers::ops
