// Large products by the fastest of cuBLASLt's algorithms. cuBLAS guesses one for a shape; on large shapes another of
// its own proposals may be a few percent faster. Plain C++.
//
// A shape that comes a second time on a device is measured, once, while the host waits: PyTorch's own product, and
// every proposal whose result has the same bits. The fastest is taken from then on, so the choice changes no result. A
// shape is left to PyTorch that is small, is seen during the capture of a graph first, or comes when many have been
// measured.
#pragma once

#include <functional>

#include "xformers/kernels/cuda/base/stream.h"
#include "xformers/kernels/params/product.h"

namespace xformers::cuda {

// Whether there may be a choice; out is not looked at.
bool may_choose_product(const ProductParams& params);

// On the given stream, of a product that there may be a choice for. `usual` enqueues the same product there by PyTorch.
// workspace: kProductWorkspace bytes.
inline constexpr size_t kProductWorkspace = 1024;
void product(const ProductParams& params, const Stream& stream, const std::function<void()>& usual);

}  // namespace xformers::cuda
