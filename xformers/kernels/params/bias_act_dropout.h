// What the fused layer is asked to do, element by element over [rows, width]:
//   y = keep * activation(x + bias) / (1 - p) + residual
// In fp32 (fp64 for fp64) with one rounding. Whether an element is kept is drawn from the stream of base/philox.h at
// (sequence_head, query, key) = (row / 2^32, row % 2^32, column): forward and backward see the same mask, which is
// never stored. p = 1 drops everything.
#pragma once

#include <cstdint>

#include "xformers/kernels/base/activation.h"
#include "xformers/kernels/base/dtype.h"
#include "xformers/kernels/params/dropout.h"
#include "xformers/kernels/params/rows.h"

namespace xformers {

struct BiasActDropoutShape {
  DType dtype = DType::kFloat32;  // of x, y, residual and their gradients
  int64_t rows = 0, width = 0;
  Activation activation = Activation::kNone;
  Dropout dropout;
  // Of bias and dbias: fp32 (fp64 for fp64). On CUDA also bf16 or fp16, unless dtype is fp64.
  DType bias_dtype = compute_dtype(dtype);
};

struct BiasActDropoutFwdParams {
  BiasActDropoutShape shape;
  Rows x;
  const void* bias = nullptr;  // [width]; null: none
  Rows residual;               // no data: none
  Rows out;                    // may be x
};

//   dx = keep * dout / (1 - p) * activation'(x + bias);  dbias = sum of dx over the rows;  dresidual = dout
struct BiasActDropoutBwdParams {
  BiasActDropoutShape shape;
  Rows x;  // no data: with Activation::kNone it isn't needed
  const void* bias = nullptr;
  Rows dout;
  Rows dx;                // no data: not wanted; may be dout
  void* dbias = nullptr;  // [width]; summed before dx is rounded; null: not wanted
};

}  // namespace xformers
