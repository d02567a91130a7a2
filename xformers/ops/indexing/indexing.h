// Gathering and adding rows.
#pragma once

#include <ATen/core/Tensor.h>

#include <optional>

#include "xformers/kernels/base/error.h"

namespace xformers::ops {

// sources[i] [rows_i, width_i], indices[i] int64 [n_i], each in [0, rows_i). The selected rows of all sources,
// flattened and concatenated: [sum of n_i * width_i], in the dtype that the sources share. Differentiable in the
// sources; where an index repeats a row, its gradients add up.
at::Tensor index_select_cat(at::TensorList sources, at::TensorList indices);

// In place: input[index[i]] += alpha * scaling * source[i], computed in fp32 (fp64 for fp64) and rounded once; repeated
// indices add up. input [rows, middle, width], index int64 [n], source [n, middle, width], scaling [width]. Returns
// input. Differentiable in input, source and scaling.
const at::Tensor& scaled_index_add(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                                   const std::optional<at::Tensor>& scaling = std::nullopt, double alpha = 1.0);

}  // namespace xformers::ops
