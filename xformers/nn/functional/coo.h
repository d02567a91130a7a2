// Batches of sparse COO tensors, coalesced, whose elements may each have their own places: the batch is one sparse
// matrix of blocks on the diagonal for the operators of compressed rows (ops/csr). xformers::Error where shapes do not
// fit.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::nn::functional {

// a [batch, m, k] @ b [batch, k, n] -> [batch, m, n]. Differentiable in a's values and b.
at::Tensor coo_bmm(const at::Tensor& a, const at::Tensor& b);

// Softmax over the values of each row, in the same places. Differentiable.
at::Tensor coo_softmax(const at::Tensor& a);

}  // namespace xformers::nn::functional
