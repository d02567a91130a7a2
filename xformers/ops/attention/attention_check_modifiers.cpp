// Checks of what is done to scores: bias, softcap, ALiBi slopes, sinks.
#include <cmath>
#include <string>

#include "xformers/ops/attention/attention_check.h"

namespace xformers::ops {
namespace {

void check_bias_kind(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  const at::Tensor& bias = *args.attn_bias;
  if (bias.scalar_type() != args.query.scalar_type() && bias.scalar_type() != at::kBool) {
    check.fail("attn_bias.dtype", describe_dtype(bias.scalar_type()),
               std::string(describe_dtype(args.query.scalar_type())) + " like the query's, or bool (True: attend)",
               "convert with bias.to(query.dtype)");
  }
  if (bias.device() != args.query.device()) {
    check.fail("attn_bias.device", bias.device().str(), args.query.device().str(),
               "move it with bias.to(query.device)");
  }
}

void check_dense_bias(const AttentionArgs& args) {
  const auto q = args.query.sym_sizes();
  c10::SymDimVector expected{q[0]};
  expected.append(q.begin() + 2, q.end() - 1);
  expected.push_back(q[1]);
  expected.push_back(args.key.sym_size(1));
  check_of(args).same_shape("attn_bias.shape", args.attn_bias->sym_sizes(), expected,
                            "a bias is not broadcast; repeat with bias.expand(...), which copies nothing");
}

// [sequences or 1, (groups or 1, heads or 1,) as long as the longest queries and keys, or longer]; check_offsets looks
// at the lengths.
void check_packed_bias(const AttentionArgs& args) {
  const auto q = args.query.sym_sizes(), sizes = args.attn_bias->sym_sizes();
  c10::SymDimVector expected{num_sequences(args)};
  expected.append(q.begin() + 2, q.end() - 1);
  bool fits = sizes.size() == expected.size() + 2;
  for (size_t dim = 0; fits && dim < expected.size(); ++dim) fits = sizes[dim] == expected[dim] || sizes[dim] == 1;
  if (fits) return;
  std::string text = "[";
  for (const c10::SymInt& size : expected) text += c10::str(size) + " or 1, ";
  check_of(args).fail("attn_bias.shape", describe_shape(sizes), text + "longest seqlen_q, longest seqlen_k]",
                      "give scores by the place inside each sequence; one for all sequences has 1 in front");
}

// [(sequences,) (groups,) heads]
void check_head_numbers(const AttentionArgs& args, const char* name, const at::Tensor& numbers, bool in_query_dtype) {
  const AttentionCheck check = check_of(args);
  const auto q = args.query.sym_sizes();
  c10::SymDimVector heads(q.begin() + 2, q.end() - 1);
  if (heads.empty()) heads.push_back(1);
  c10::SymDimVector each{num_sequences(args)};
  each.append(heads.begin(), heads.end());
  const auto sizes = numbers.sym_sizes();
  if (sizes != c10::SymIntArrayRef(heads) && sizes != c10::SymIntArrayRef(each)) {
    check.fail(std::string(name) + ".shape", describe_shape(sizes),
               describe_shape(heads) + ", one per head, or " + describe_shape(each) + ", for each sequence",
               "numbers are not broadcast; repeat with tensor.expand(...)");
  }
  const at::ScalarType dtype = numbers.scalar_type(), query_dtype = args.query.scalar_type();
  if (dtype != at::kFloat && dtype != compute_dtype(query_dtype) && !(in_query_dtype && dtype == query_dtype)) {
    check.fail(std::string(name) + ".dtype", describe_dtype(dtype),
               in_query_dtype ? std::string("fp32, or ") + describe_dtype(query_dtype) + " like the query's"
                              : std::string(query_dtype == at::kDouble ? "fp32 or fp64" : "fp32"),
               "convert with tensor.float()");
  }
  if (numbers.device() != args.query.device()) {
    check.fail(std::string(name) + ".device", numbers.device().str(), args.query.device().str(),
               "move it with tensor.to(query.device)");
  }
}

}  // namespace

void check_modifiers(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  if (args.attn_bias) {
    check_bias_kind(args);
    args.cu_seqlens_q ? check_packed_bias(args) : check_dense_bias(args);
  }
  if (!(args.softcap >= 0 && std::isfinite(args.softcap))) {
    check.fail("softcap", std::to_string(args.softcap), "0 (off) or a finite number above it",
               "pass what scores shall stay below");
  }
  if (args.alibi_slopes) check_head_numbers(args, "alibi_slopes", *args.alibi_slopes, /*in_query_dtype=*/false);
  if (args.sinks) check_head_numbers(args, "sinks", *args.sinks, /*in_query_dtype=*/true);
}

}  // namespace xformers::ops
