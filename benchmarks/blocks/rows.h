// What is measured: one operator, one size, one element type, with all ways of computing it.
#pragma once

#include <ATen/core/Tensor.h>

#include <functional>
#include <string>
#include <vector>

#include "benchmarks/common/alternate.h"

namespace xformers::bench {

struct BlockRow {
  std::string name;  // "bf16 rms_norm forward 8192 x 4096"
  double bytes = 0;  // each input read once and each output written once; 0: bound by its matrix products
  std::function<std::vector<Side>()> sides;  // the first is ours, the second eager PyTorch; makes the inputs
};

// Rows whose name matches the regular expression; smaller sizes when quick.
std::vector<BlockRow> block_rows(const std::string& filter, bool quick);

}  // namespace xformers::bench
