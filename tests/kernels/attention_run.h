// An attention case as tensors in memory, run by the kernels and handed to the reference.
#pragma once

#include <cstdint>
#include <memory>
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
  void backward();  // takes out, lse and lse_low of forward()
  void run() {
    forward();
    if (!case_.forward_only()) backward();
  }

  reference::AttentionResult result() const;
  // All output elements, for bit-by-bit comparisons.
  std::vector<unsigned char> output_bytes() const;
  // The name of an output whose padding was written to, or "".
  std::string damaged_output() const;

  const AttentionCase& attention_case() const { return case_; }
  StridedTensor q, k, v, out, dout;  // [batch, seqlen, groups, heads, head_dim]; shared heads have stride 0
  StridedTensor dq, dk, dv;
  StridedTensor lse, lse_low, dlse;  // [batch, groups, heads, seqlen_q, 1]
  // [batch, groups, heads, seqlen_q, seqlen_k]; packed: [sequences, ..., more than the longest q, more than k], and
  // dbias has one entry where sequences or heads share the bias.
  StridedTensor bias, dbias;
  StridedTensor slopes, sinks, dslopes, dsinks;  // [sequences, groups, heads, 1, 1]
  StridedTensor k_scale_shift, v_scale_shift;    // fp8: words, [batch, seqlen, groups, heads, 1]
  std::vector<int32_t> cu_seqlens_q, cu_seqlens_k, used_k;
  // The lists of a block mask (params/attention.h), and what they say: [batch, heads, seqlen_q, seqlen_k].
  std::vector<int32_t> key_offsets, key_blocks, query_offsets, query_blocks, bits_of;
  std::vector<uint16_t> bits;
  std::vector<char> shown;
  bool held_scores = false;  // of the reference (tests/reference/attention.h)

  // [sequences, max_pages()] up to the last entry that may be read: behind it lies memory that can't be.
  int32_t* page_table() const;
  int64_t num_page_entries() const;

 private:
  void allocate();
  void fill();
  void fill_words(StridedTensor& words, StridedTensor& scale_shift, int64_t dim);
  void spoil_unused_rows();
  void make_page_table();
  void make_blocks();
  BlockMask blocks() const;
  int64_t max_pages() const;
  void allocate_bias();
  bool shares_bias() const;
  std::vector<double> key_values(const StridedTensor& rows, const StridedTensor& scale_shift, int64_t dim) const;
  reference::Sequence sequence(size_t b) const;
  AttentionShape shape() const;
  SeqLayout layout() const;
  Dropout dropout() const;
  ScoreModifiers modifiers() const;

  AttentionCase case_;
  std::shared_ptr<GuardedBuffer> page_table_;
};

}  // namespace xformers::testing
