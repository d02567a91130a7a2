// What every attention mechanism is to C++ users: a torch::nn module that is an Attention too.
#pragma once

#include <torch/nn/cloneable.h>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn {

// What MultiHeadDispatch hands over. Read at every call.
struct AttentionFlags {
  bool requires_input_projection = true;      // q, k and v are projections
  bool requires_same_k_q_dimensions = false;  // as many keys as queries
  bool requires_skip_multi_head = false;      // takes [batch, seqlen, dim_model], no projection after it
  bool requires_squared_context = false;      // the sequence is a square grid of tokens
  bool supports_attention_mask = true;
  bool supports_key_padding_mask = false;
};

class Attention {
 public:
  virtual ~Attention() = default;

  // q, k, v [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]; with
  // requires_skip_multi_head [batch, seqlen, dim_model]. Masks as functional/attend.h says.
  virtual at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v,
                             const functional::Masks& masks) = 0;
  at::Tensor forward(const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) { return forward(q, k, v, {}); }

  AttentionFlags flags;
};

// Base of a module Impl: options, flags, and dropout while training.
template <class Impl, class OptionsOf>
class AttentionModule : public torch::nn::Cloneable<Impl>, public Attention {
 public:
  using Attention::forward;
  explicit AttentionModule(const OptionsOf& options_arg) : options(options_arg) {}
  void reset() override {}

  OptionsOf options;

 protected:
  double dropout() const { return this->is_training() ? options.dropout : 0; }
};

}  // namespace xformers::nn
