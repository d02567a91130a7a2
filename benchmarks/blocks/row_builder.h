// Rows from what they compute: the same values for both sides, forward without gradients, backward of one kept graph.
#pragma once

#include <ATen/ATen.h>

#include <functional>
#include <string>
#include <vector>

#include "benchmarks/blocks/rows.h"

namespace xformers::bench {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using Compute = std::function<Tensor(const Tensors&)>;

// The element type and the size factor of one pass over all operators.
struct Setting {
  at::ScalarType dtype;
  std::string name;
  int64_t rows;

  Tensor random(at::IntArrayRef sizes) const { return at::randn(sizes).to(dtype); }
  double bytes(double elements) const { return elements * static_cast<double>(c10::elementSize(dtype)); }
};

// backward_bytes below 0: no such row; 0 bytes: bound by matrix products.
void add(std::vector<BlockRow>& rows, const Setting& setting, const std::string& what, double forward_bytes,
         double backward_bytes, const std::function<Tensors()>& inputs, const Compute& ours, const Compute& eager);

std::string times(int64_t a, int64_t b);  // "2048 x 4096"

void add_fused(std::vector<BlockRow>& rows, const Setting& setting, bool quick);  // softmax, dropout, linear layers

}  // namespace xformers::bench
