// What a layer of a model can be asked, whatever module it is. Registries hand out modules; whoever calls one finds its
// interface with dynamic_cast.
#pragma once

#include <ATen/core/Tensor.h>

namespace xformers::nn {

// [batch, seqlen, dim] to [batch, seqlen, dim]: feed-forward layers; embeddings of positions, which may take ids.
class TensorLayer {
 public:
  virtual ~TensorLayer() = default;
  virtual at::Tensor forward(const at::Tensor& x) = 0;
  virtual bool requires_squared_context() const { return false; }  // the sequence is a square grid of tokens
  virtual bool init_weights(double /*gain*/) { return false; }     // whether it initialises itself
};

}  // namespace xformers::nn
