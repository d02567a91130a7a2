// "Keeping your eye on the ball" (Patrick et al., arXiv:2106.05392), Orthoformer: attention through a few of the
// queries (and keys) that are as different as possible, L: softmax(q L^T) (softmax(L k^T) v), scores over
// sqrt(head_dim).
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct OrthoformerArgs {
  static constexpr const char* kName = "orthoformer_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  int64_t num_landmarks = 32;
  double subsample_fraction = 1;  // of the tokens that landmarks are chosen from, at least num_landmarks
  std::string_view landmark_selection = "orthogonal";  // or "kmeans", "kmeans_spherical", "random"
  double p = 0;                                        // of dropping a weight

  static constexpr auto arguments() {
    using A = OrthoformerArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("num_landmarks", &A::num_landmarks),
                      ops::arg("subsample_fraction", &A::subsample_fraction),
                      ops::arg("landmark_selection", &A::landmark_selection),
                      ops::arg("p", &A::p)};
  }
};

// In q's layout. Landmarks are drawn with the default generator and get no gradient. As many landmarks as queries, or
// more: exact attention.
at::Tensor orthoformer_attention(const OrthoformerArgs& args);

}  // namespace xformers::nn::functional
