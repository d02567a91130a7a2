// "Rethinking Attention with Performers" (Choromanski et al., arXiv:2009.14794): softmax attention estimated by random
// positive features, out_i = sum over j of (q'_i . k'_j) v_j / sum over j of q'_i . k'_j, over all j or, causal, j <=
// i: linear_attention() over the features that omega makes. O(seqlen m); features never lie in memory.
//
//   x' = exp(x omega - |x|^2 / 2), or exp of both signs of x omega side by side;   x of length scaled by
//   head_dim^(-1/4)
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct FavorArgs {
  static constexpr const char* kName = "favor_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;   // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor omega;     // [head_dim, m or m / 2]: no gradient
  bool paired = false;  // both signs of x omega
  bool causal = false;

  static constexpr auto arguments() {
    using A = FavorArgs;
    return std::tuple{ops::arg("q", &A::q),         ops::arg("k", &A::k),           ops::arg("v", &A::v),
                      ops::arg("omega", &A::omega), ops::arg("paired", &A::paired), ops::arg("causal", &A::causal)};
  }
};

// In q's layout and dtype; half precision is computed in fp32, also under autocast.
at::Tensor favor_attention(const FavorArgs& args);

// The features alone: exp(x omega + o), o = -|x|^2 / 2 - log(m) / 2 + epsilon, [..., m]; normalize: less the largest
// |x|^2 of the sequence.
struct FavorFeaturesArgs {
  static constexpr const char* kName = "favor_features";
  using Result = at::Tensor;
  at::Tensor x;      // [..., seqlen, head_dim]
  at::Tensor omega;  // [head_dim, m or m / 2]
  bool paired = false, normalize = false;
  double epsilon = 1e-6;

  static constexpr auto arguments() {
    using A = FavorFeaturesArgs;
    return std::tuple{ops::arg("x", &A::x), ops::arg("omega", &A::omega), ops::arg("paired", &A::paired),
                      ops::arg("normalize", &A::normalize), ops::arg("epsilon", &A::epsilon)};
  }
};
at::Tensor favor_features(const FavorFeaturesArgs& args);

// Orthogonal matrices drawn uniformly, [blocks, dim, dim]; of_gaussian_length: each row as long as one of as many
// normal numbers.
at::Tensor random_orthogonal(int64_t blocks, int64_t dim, bool of_gaussian_length, std::optional<at::Device> device);

// omega [head_dim, columns] of such blocks, one below the other. Rows of length sqrt(head_dim) (constant_length), or of
// Gaussian length.
at::Tensor draw_omega(int64_t head_dim, int64_t columns, bool constant_length, std::optional<at::Device> device);

}  // namespace xformers::nn::functional
