// Schemas, public function and checks.
#include "xformers/ops/merge_attentions/merge_attentions.h"

#include <string>

#include "xformers/ops/merge_attentions/merge_attentions_op.h"

namespace xformers::ops {
namespace {

const Check kCheck("merge_attentions");

std::string item(const char* list, size_t index) { return std::string(list) + "[" + std::to_string(index) + "]"; }

// [batch, seqlen, (groups,) heads, head_dim] -> [batch, (groups,) heads, seqlen]
c10::SymDimVector lse_sizes_of(const at::Tensor& attn) {
  const auto sizes = attn.sym_sizes();
  c10::SymDimVector lse{sizes[0]};
  lse.append(sizes.begin() + 2, sizes.end() - 1);
  lse.push_back(sizes[1]);
  return lse;
}

void check_parts(const char* name, at::TensorList parts) {
  for (size_t i = 1; i < parts.size(); ++i) {
    const std::string title = item(name, i), first = item(name, 0);
    kCheck.shape(title.c_str(), parts[i], parts[0].sym_sizes(), "all parts have the shape of the first");
    kCheck.same_dtype(title.c_str(), parts[i], parts[0], first.c_str());
    kCheck.same_device(title.c_str(), parts[i], parts[0], first.c_str());
  }
}

at::Tensor stacked_like(at::TensorList parts) {
  c10::SymDimVector sizes{static_cast<int64_t>(parts.size())};
  sizes.append(parts[0].sym_sizes().begin(), parts[0].sym_sizes().end());
  return empty_result(sizes, parts[0].options());
}

}  // namespace

void MergeAttentions::check() const {
  if (attn.empty()) kCheck.fail("attn", "empty", "one part or more", "pass a result per set of keys");
  if (attn.size() != lse.size()) {
    kCheck.fail("lse", std::to_string(lse.size()) + " parts", std::to_string(attn.size()) + " like attn",
                "pass the lse that came with each part");
  }
  if (attn[0].dim() != 4 && attn[0].dim() != 5) {
    kCheck.fail("attn[0]", describe(attn[0]),
                "[batch, seqlen, heads, head_dim] or [batch, seqlen, groups, heads, head_dim]",
                "pass the parts as attention returned them");
  }
  kCheck.floating("attn[0]", attn[0]);
  if (attn[0].sym_size(-1) == 0)
    kCheck.fail("attn[0]", describe(attn[0]), "a head_dim of 1 or more", "check the shape");
  kCheck.shape(
      "lse[0]", lse[0], lse_sizes_of(attn[0]),
      "an lse is [batch, (groups,) heads, seqlen] for attn [batch, seqlen, (groups,) heads, head_dim]; slice off "
      "its padding");
  kCheck.statistics("lse[0]", lse[0]);
  kCheck.same_device("lse[0]", lse[0], attn[0], "attn[0]");
  check_parts("attn", attn);
  check_parts("lse", lse);
  if (out_dtype && !is_kernel_dtype(*out_dtype)) {
    kCheck.fail("output_dtype", describe_dtype(*out_dtype), "fp32, fp64, bf16 or fp16",
                "leave it out for that of attn");
  }
}

MergeAttentions::Result MergeAttentions::empty() const {
  return {empty_result(attn[0].sym_sizes(), attn[0].options().dtype(out_dtype.value_or(attn[0].scalar_type()))),
          empty_result(lse_sizes_of(attn[0]), lse[0].options(), write_lse)};
}

void MergeAttentionsBackward::check() const {
  MergeAttentions{attn, lse}.check();
  constexpr const char* kForward = "pass the gradients of what the forward returned";
  kCheck.shape("grad_out", grad_out, attn[0].sym_sizes(), kForward);
  kCheck.floating("grad_out", grad_out);
  kCheck.same_device("grad_out", grad_out, attn[0], "attn[0]");
  if (!grad_lse) return;
  kCheck.shape("grad_lse", *grad_lse, lse[0].sym_sizes(), kForward);
  kCheck.same_dtype("grad_lse", *grad_lse, lse[0], "lse[0]");
  kCheck.same_device("grad_lse", *grad_lse, attn[0], "attn[0]");
}

MergeAttentionsBackward::Result MergeAttentionsBackward::empty() const {
  return {stacked_like(attn), stacked_like(lse)};
}

std::tuple<at::Tensor, at::Tensor> merge_attentions(at::TensorList attn, at::TensorList lse, bool write_lse,
                                                    std::optional<at::ScalarType> out_dtype) {
  return call(MergeAttentions{attn, lse, write_lse, out_dtype});
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<MergeAttentions, MergeAttentionsBackward>(m);
}
