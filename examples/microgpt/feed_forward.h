// The feed-forward layer of a block, down(gelu(up(x))): dense, or 2:4 sparse in its weights or its activations.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>

namespace microgpt {

enum class Sparse24 {
  kNone,
  kWeights,     // both matrices: the larger half of any 4 x 4 tile, chosen in every step
  kActivations  // what `down` takes; no token's choice depends on a later one
};

inline constexpr const char* kSparse24Names[] = {"none", "weights", "activations"};  // of Sparse24

class FeedForward {
 public:
  // name: one of kSparse24Names. Loads the library of the sparse operators where they are wanted; an Error if there is
  // none.
  explicit FeedForward(const std::string& name);

  // x [batch, seqlen, dim]; up [hidden, dim]; down [dim, hidden]. The result has the shape of x.
  at::Tensor operator()(const at::Tensor& x, const at::Tensor& up, const at::Tensor& down) const;

 private:
  Sparse24 sparse_;
};

}  // namespace microgpt
