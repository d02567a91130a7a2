// One product as cuBLASLt takes it.
#pragma once

#include <memory>
#include <vector>

#include "xformers/kernels/cuda/product/cublaslt_api.h"
#include "xformers/kernels/params/product.h"

namespace xformers::cuda {

class LtProduct {
 public:
  explicit LtProduct(const ProductParams& params);

  // Best first, as cuBLASLt believes; those that need no workspace, and so split no sum.
  std::vector<lt::Algorithm> proposals(int most) const;
  bool run(const lt::Algorithm& algorithm, cudaStream_t stream) const;  // false: refused, nothing is enqueued

 private:
  template <class T>
  using Owned = std::unique_ptr<T, int (*)(T*)>;

  ProductParams params_;
  // cuBLAS counts matrices by columns: it computes out^T = b^T a^T.
  Owned<lt::Product> product_;
  Owned<lt::Layout> b_, a_, out_;
};

}  // namespace xformers::cuda
