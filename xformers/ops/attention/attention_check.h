// What the attention operators refuse, for every device: shapes, dtypes, devices and ranges. Reads no element but the
// offsets and pages of packed sequences, and those only on the CPU.
#pragma once

#include "xformers/ops/attention/attention_op.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {

// Messages end with a line that shows query, key and value:
//   attention: key.head_dim is 96, expected 128.  Fix: only value may have its own head_dim.
//     query [2, 1024, 16, 128] bf16 cpu · key [2, 1024, 16, 96] bf16 cpu · value [2, 1024, 16, 128] bf16 cpu
class AttentionCheck final : public Check {
 public:
  AttentionCheck(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value)
      : Check("attention"), query_(query), key_(key), value_(value) {}

 protected:
  std::string context() const override;

 private:
  const at::Tensor &query_, &key_, &value_;
};

inline AttentionCheck check_of(const AttentionArgs& args) { return {args.query, args.key, args.value}; }

void check_same_device(const AttentionArgs& args);
void check_problem(const AttentionArgs& args);  // everything that says what is asked for

// Parts of check_problem: packed and paged layouts; int32 key and value; what is done to scores; a block mask.
void check_packed(const AttentionArgs& args);
void check_quantized(const AttentionArgs& args);
void check_modifiers(const AttentionArgs& args);
void check_blocks(const AttentionArgs& args);

// Offsets rise, and key ranges, pages and blocks stay inside the tensors. For CPU tensors: reads them all.
void check_offsets(const AttentionArgs& args);
void check_block_lists(const AttentionArgs& args);  // the part of it that looks at a block mask

inline bool is_quantized(const AttentionArgs& args) {
  return args.key.scalar_type() == at::kInt && args.value.scalar_type() == at::kInt;
}
inline bool is_packed(const AttentionArgs& args) {
  return args.cu_seqlens_q || args.cu_seqlens_k || args.seqused_k || args.page_table;
}
inline c10::SymInt num_sequences(const AttentionArgs& args) {
  return args.cu_seqlens_q ? args.cu_seqlens_q->sym_size(0) - 1 : args.query.sym_size(0);
}

// Shapes of the results; sizes may be symbolic.
c10::SymDimVector out_sizes(const AttentionArgs& args);
c10::SymDimVector lse_sizes(const at::Tensor& query);

}  // namespace xformers::ops
