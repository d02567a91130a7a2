// "Nystroemformer" (Xiong et al., arXiv:2102.03902): attention through landmarks, the means of segments of the
// sequence,
//
//   softmax(q k~^T) pinv(softmax(q~ k~^T)) (softmax(q~ k^T + masks) v),        scores over sqrt(head_dim)
//
// computed from the right, so that both factors of length seqlen are calls of the attention operator. O(seqlen).
#pragma once

#include "xformers/ops/common/operator.h"

namespace xformers::nn::functional {

struct NystromArgs {
  static constexpr const char* kName = "nystrom_attention";
  using Result = at::Tensor;
  at::Tensor q, k, v;  // [batch, seqlen, heads, head_dim] or, heads folded, [batch * heads, seqlen, head_dim]
  ops::OptionalTensor key_padding_mask{};  // [batch, seqlen_k] or [batch * heads, 1, seqlen_k], bool or additive
  int64_t num_landmarks = 64;
  bool causal = false;              // a landmark sees no key behind its segment: approximately causal
  bool use_razavi_pinverse = true;  // iterated; else by singular values
  bool pinverse_original_init = false;
  int64_t inv_iterations = 6;
  ops::OptionalTensor q_landmarks{}, k_landmarks{};  // in q's layout, with num_landmarks rows, in place of the means
  ops::OptionalTensor skip_weight{};  // [heads, 1, kernel, 1]: v, convolved along the sequence, is added to the result
  double p = 0;                       // of dropping an element of the output

  static constexpr auto arguments() {
    using A = NystromArgs;
    return std::tuple{ops::arg("q", &A::q),
                      ops::arg("k", &A::k),
                      ops::arg("v", &A::v),
                      ops::arg("key_padding_mask", &A::key_padding_mask),
                      ops::arg("num_landmarks", &A::num_landmarks),
                      ops::arg("causal", &A::causal),
                      ops::arg("use_razavi_pinverse", &A::use_razavi_pinverse),
                      ops::arg("pinverse_original_init", &A::pinverse_original_init),
                      ops::arg("inv_iterations", &A::inv_iterations),
                      ops::arg("q_landmarks", &A::q_landmarks),
                      ops::arg("k_landmarks", &A::k_landmarks),
                      ops::arg("skip_weight", &A::skip_weight),
                      ops::arg("p", &A::p)};
  }
};

// In q's layout. As many landmarks as tokens, or more: exact attention. Means leave padded tokens out; the inverse is
// computed in fp32 (fp64 for fp64 inputs), also under autocast. Folded heads are as many as
// skip_weight has. xformers::Error where shapes do not fit.
at::Tensor nystrom_attention(const NystromArgs& args);

// The pseudo-inverse of the last two dimensions: V <- V (13 I - A V (15 I - A V (7 I - A V))) / 4, n_iter times, from
// A^T over the largest column sum of each matrix, or of all with pinverse_original_init (Razavi et al., "A new
// iterative method for finding approximate inverses of complex matrices", 2014).
struct IterativePinvArgs {
  static constexpr const char* kName = "iterative_pinv";
  using Result = at::Tensor;
  at::Tensor a;  // [..., n, n]
  int64_t n_iter = 6;
  bool pinverse_original_init = false;

  static constexpr auto arguments() {
    using A = IterativePinvArgs;
    return std::tuple{ops::arg("a", &A::a), ops::arg("n_iter", &A::n_iter),
                      ops::arg("pinverse_original_init", &A::pinverse_original_init)};
  }
};
at::Tensor iterative_pinv(const IterativePinvArgs& args);

}  // namespace xformers::nn::functional
