// An attention case as tensors in memory, run by the kernels and handed to the reference.
#pragma once

#include <cstdint>
#include <string>
#include <vector>

#include "tests/cases/attention.h"
#include "tests/kernels/strided_tensor.h"
#include "tests/reference/attention.h"
#include "xformers/kernels/cpu/attention/attention_cpu.h"

namespace xformers::testing {

class AttentionRun {
 public:
  explicit AttentionRun(const AttentionCase& c);  // random inputs from c.seed; outputs are NaN

  // Both point into this object, so they live no longer than it.
  AttentionFwdParams forward_params() const;
  AttentionBwdParams backward_params() const;
  reference::AttentionProblem problem() const;

  void forward();
  void backward();  // takes out and lse of forward()
  void run() {
    forward();
    backward();
  }

  reference::AttentionResult result() const;
  // All output elements, for bit-by-bit comparisons.
  std::vector<unsigned char> output_bytes() const;
  // The name of an output whose padding was written to, or "".
  std::string damaged_output() const;

  const AttentionCase& attention_case() const { return case_; }
  StridedTensor q, k, v, out, dout;  // [batch, seqlen, groups, heads, head_dim]; shared heads have stride 0
  StridedTensor dq, dk, dv;
  StridedTensor lse, dlse;    // [batch, groups, heads, seqlen_q, 1]
  StridedTensor bias, dbias;  // [batch, groups, heads, seqlen_q, seqlen_k]
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k;

 private:
  void allocate();
  void fill();
  AttentionShape shape() const;
  SeqLayout layout() const;
  Dropout dropout() const;

  AttentionCase case_;
};

}  // namespace xformers::testing
