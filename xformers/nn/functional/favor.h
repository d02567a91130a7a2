// "Rethinking Attention with Performers" (Choromanski et al., arXiv:2009.14794): softmax attention estimated by random
// positive features, out_i = sum over j of (q'_i . k'_j) v_j / sum over j of q'_i . k'_j, over all j or, causal, j <=
// i. O(seqlen m). Features are made chunk by chunk, from x and omega, and again in backward: they never lie in memory
// whole.
//
//   x' = exp(x omega - |x|^2 / 2), or exp of both signs of x omega side by side;   x of length scaled by
//   head_dim^(-1/4)
//
// Constant factors of q'_i, and of all k'_j together, cancel: they are chosen so that nothing overflows.
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct FavorArgs {
  static constexpr const char* kName = "favor_attention";
  static constexpr const char* kResults[] = {"out", "denominator"};
  using Result = std::tuple<at::Tensor, at::Tensor>;
  at::Tensor q, k, v;   // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  at::Tensor omega;     // [head_dim, m or m / 2]: no gradient
  bool paired = false;  // both signs of x omega
  bool causal = false;

  static constexpr auto arguments() {
    using A = FavorArgs;
    return std::tuple{ops::arg("q", &A::q),         ops::arg("k", &A::k),           ops::arg("v", &A::v),
                      ops::arg("omega", &A::omega), ops::arg("paired", &A::paired), ops::arg("causal", &A::causal)};
  }
  void check() const;
  Result empty() const;
};

struct FavorBackwardArgs : FavorArgs {
  static constexpr const char* kName = "favor_attention_backward";
  static constexpr const char* kResults[] = {"dq", "dk", "dv"};
  using Result = std::tuple<at::Tensor, at::Tensor, at::Tensor>;
  at::Tensor grad_out, out, denominator;

  static constexpr auto arguments() {
    using A = FavorBackwardArgs;
    return std::tuple_cat(std::tuple{ops::arg("grad_out", &A::grad_out)}, FavorArgs::arguments(),
                          std::tuple{ops::arg("out", &A::out).keyword().required(),
                                     ops::arg("denominator", &A::denominator).keyword().required()});
  }
  Result empty() const;
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
