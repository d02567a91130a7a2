#include "xformers/ops/attention/attention_check.h"

#include <algorithm>
#include <string>

#include "xformers/ops/common/tensor_check.h"

namespace xformers::ops {
namespace {

constexpr const char* kWhere = "attention";
constexpr const char* kLayouts =
    "use [batch, seqlen, heads, head_dim], [batch, seqlen, head_dim] or [batch, seqlen, groups, heads, head_dim]";

TensorCheck check_of(const AttentionInputs& in) { return {kWhere, in.query, in.key, in.value}; }

void check_layout(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  const int64_t ndim = in.query.dim();
  if (ndim < 3 || ndim > 5) check.fail("query.ndim", std::to_string(ndim), "3, 4 or 5", kLayouts);
  for (const auto& [name, tensor] : {std::pair{"key.ndim", &in.key}, std::pair{"value.ndim", &in.value}}) {
    if (tensor->dim() != ndim) {
      check.fail(name, std::to_string(tensor->dim()), std::to_string(ndim) + " like the query's", kLayouts);
    }
  }
}

void check_sizes(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  constexpr const char* kExpand = "sizes are not broadcast; repeat with tensor.expand(...), which copies nothing";
  const auto q = in.query.sym_sizes(), k = in.key.sym_sizes(), v = in.value.sym_sizes();
  const size_t ndim = q.size();
  check.equal("key.batch", k[0], q[0], kExpand);
  check.equal("value.batch", v[0], q[0], kExpand);
  check.equal("value.seqlen", v[1], k[1], "key and value describe the same positions");
  for (size_t dim = 2; dim + 1 < ndim; ++dim) {
    const bool groups = ndim == 5 && dim == 2;
    check.equal(groups ? "key.groups" : "key.heads", k[dim], q[dim], kExpand);
    check.equal(groups ? "value.groups" : "value.heads", v[dim], q[dim], kExpand);
  }
  check.equal("key.head_dim", k[ndim - 1], q[ndim - 1], "only value may have its own head_dim");
  constexpr const char* kEmptyHead = "give every head at least one element";
  if (q[ndim - 1] == 0) check.fail("query.head_dim", "0", "1 or more", kEmptyHead);
  if (v[ndim - 1] == 0) check.fail("value.head_dim", "0", "1 or more", kEmptyHead);
}

void check_dtypes(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  const at::ScalarType dtype = in.query.scalar_type();
  if (dtype != at::kFloat && dtype != at::kDouble && dtype != at::kBFloat16 && dtype != at::kHalf) {
    check.fail("query.dtype", describe_dtype(dtype), "fp32, bf16, fp16 or fp64", "convert with tensor.to(dtype)");
  }
  for (const auto& [name, tensor] : {std::pair{"key.dtype", &in.key}, std::pair{"value.dtype", &in.value}}) {
    if (tensor->scalar_type() != dtype) {
      check.fail(name, describe_dtype(tensor->scalar_type()), std::string(describe_dtype(dtype)) + " like the query's",
                 "convert with tensor.to(query.dtype), or run under autocast");
    }
  }
}

void check_attn_bias(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  const at::Tensor& bias = *in.attn_bias;
  const auto q = in.query.sym_sizes();
  c10::SymDimVector expected{q[0]};
  expected.append(q.begin() + 2, q.end() - 1);
  expected.push_back(q[1]);
  expected.push_back(in.key.sym_size(1));
  check.same_shape("attn_bias.shape", bias.sym_sizes(), expected,
                   "a bias is not broadcast; repeat with bias.expand(...), which copies nothing");
  if (bias.scalar_type() != in.query.scalar_type() && bias.scalar_type() != at::kBool) {
    check.fail("attn_bias.dtype", describe_dtype(bias.scalar_type()),
               std::string(describe_dtype(in.query.scalar_type())) + " like the query's, or bool (True: attend)",
               "convert with bias.to(query.dtype)");
  }
  if (bias.device() != in.query.device()) {
    check.fail("attn_bias.device", bias.device().str(), in.query.device().str(), "move it with bias.to(query.device)");
  }
  if (in.cu_seqlens_q) {
    check.fail("attn_bias", "a tensor beside packed sequences", "one of the two",
               "use a block-diagonal bias alone, or pad the sequences to one batch");
  }
}

void check_int32(const AttentionInputs& in, const char* name, const OptionalTensor& t, const char* size_text,
                 const c10::SymInt* size) {
  const TensorCheck check = check_of(in);
  const std::string title(name);
  if (!t) check.fail(title, "None", "int32 " + std::string(size_text), "packed sequences need offsets of both sides");
  if (t->scalar_type() != at::kInt || t->dim() != 1 || !t->is_contiguous()) {
    check.fail(title, describe(*t), "contiguous int32 " + std::string(size_text), "build it with torch.int32");
  }
  if (t->device() != in.query.device()) {
    check.fail(title + ".device", t->device().str(), in.query.device().str(),
               "move the bias with attn_bias.to(query.device), or build it without a device");
  }
  if (size) check.equal(name, t->sym_size(0), *size, "give one entry per sequence to every list of lengths");
}

void check_packed(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  check_int32(in, "cu_seqlens_q", in.cu_seqlens_q, "[sequences + 1]", nullptr);
  const c10::SymInt entries = in.cu_seqlens_q->sym_size(0);
  if (entries == 0) check.fail("cu_seqlens_q", "empty", "[sequences + 1] entries", "start it with 0");
  const c10::SymInt sequences = entries - 1;
  check_int32(in, "cu_seqlens_k", in.cu_seqlens_k, "[sequences + 1]", in.seqused_k ? nullptr : &entries);
  if (in.seqused_k) {
    check_int32(in, "seqused_k", in.seqused_k, "[sequences]", &sequences);
    if (in.cu_seqlens_k->sym_size(0) != sequences) {  // starts alone will do, where lengths are given
      check.equal("cu_seqlens_k", in.cu_seqlens_k->sym_size(0), entries, "give one start per sequence, and the total");
    }
  }
  if (in.query.dim() == 3) {
    check.fail("query.ndim", "3", "4 or 5 for packed sequences", "use [1, total, heads, head_dim]");
  }
  check.equal("query.batch", in.query.sym_size(0), 1,
              "packed sequences lie one after the other in one batch row: tensor.flatten(0, 1)[None]");
}

void check_ranges(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  if (!(in.p >= 0 && in.p <= 1)) {
    check.fail("p", std::to_string(in.p), "a probability in [0, 1]", "p is the share of weights to drop");
  }
  for (const auto& [name, window] :
       {std::pair{"window_left", &in.window_left}, std::pair{"window_right", &in.window_right}}) {
    if (*window < -1) check.fail(name, c10::str(*window), "0 or more, or -1 (unbounded)", "give a number of keys");
  }
  if (in.p == 0) return;
  if (!in.philox_state || in.philox_state->scalar_type() != at::kLong || in.philox_state->dim() != 1 ||
      in.philox_state->sym_size(0) != 2 || !in.philox_state->is_contiguous()) {
    check.fail("philox_state", in.philox_state ? describe(*in.philox_state) : "None",
               "contiguous int64 [2] where p > 0", "pass torch.ops.xformers.draw_philox_state()");
  }
  if (!in.philox_state->is_cpu() && in.philox_state->device() != in.query.device()) {
    check.fail("philox_state.device", in.philox_state->device().str(), "cpu", "move it with philox_state.cpu()");
  }
}

}  // namespace

void check_same_device(const at::Tensor& query, const at::Tensor& key, const at::Tensor& value) {
  for (const auto& [name, tensor] : {std::pair{"key.device", &key}, std::pair{"value.device", &value}}) {
    if (tensor->device() != query.device()) {
      TensorCheck(kWhere, query, key, value)
          .fail(name, tensor->device().str(), query.device().str() + " like the query's",
                "move all three to one device with tensor.to(device)");
    }
  }
}

void check_inputs(const AttentionInputs& in) {
  check_layout(in);
  check_same_device(in.query, in.key, in.value);
  check_dtypes(in);
  check_sizes(in);
  check_ranges(in);
  if (in.cu_seqlens_q || in.cu_seqlens_k || in.seqused_k) check_packed(in);
  if (in.attn_bias) check_attn_bias(in);
}

void check_gradient_inputs(const AttentionInputs& in, const at::Tensor& grad_out, const at::Tensor& out,
                           const at::Tensor& lse, const OptionalTensor& grad_lse) {
  const TensorCheck check = check_of(in);
  const auto expected_out = out_sizes(in.query, in.value);
  const auto expected_lse = lse_sizes(in.query);
  constexpr const char* kForward = "pass what the forward returned for the same query, key and value";
  check.same_shape("grad_out.shape", grad_out.sym_sizes(), expected_out, kForward);
  check.same_shape("out.shape", out.sym_sizes(), expected_out, kForward);
  check.same_shape("lse.shape", lse.sym_sizes(), expected_lse, kForward);
  if (grad_lse) check.same_shape("grad_lse.shape", grad_lse->sym_sizes(), expected_lse, kForward);
  const auto check_kind = [&](const char* name, const at::Tensor& t, at::ScalarType dtype) {
    if (t.scalar_type() != dtype || t.device() != in.query.device()) {
      check.fail(name, describe(t), std::string(describe_dtype(dtype)) + " " + in.query.device().str(), kForward);
    }
  };
  check_kind("grad_out", grad_out, in.query.scalar_type());
  check_kind("out", out, in.query.scalar_type());
  check_kind("lse", lse, lse_dtype(in.query));
  if (grad_lse) check_kind("grad_lse", *grad_lse, lse_dtype(in.query));
}

void check_offsets_on_cpu(const AttentionInputs& in) {
  const TensorCheck check = check_of(in);
  if (!in.cu_seqlens_q) return;
  // Every query belongs to a sequence; so does every key, unless seqused_k says which are used.
  const auto check_offsets = [&](const std::string& name, const at::Tensor& offsets, int64_t total) {
    const int32_t* data = offsets.const_data_ptr<int32_t>();
    const int64_t last = offsets.size(0) - 1;
    if (data[0] != 0) check.fail(name + "[0]", std::to_string(data[0]), "0", "offsets start at the first position");
    for (int64_t i = 0; i < last; ++i) {
      if (data[i + 1] < data[i]) {
        check.fail(name + "[" + std::to_string(i + 1) + "]", std::to_string(data[i + 1]),
                   std::to_string(data[i]) + " or more", "offsets are running sums of lengths and never fall");
      }
    }
    if (data[last] != total) {
      check.fail("the sum of the sequence lengths (" + name + "[-1])", std::to_string(data[last]),
                 std::to_string(total) + ", the seqlen of the tensor",
                 "give the lengths of the concatenated sequences");
    }
  };
  check_offsets("cu_seqlens_q", *in.cu_seqlens_q, in.query.size(1));
  if (!in.seqused_k) {
    check_offsets("cu_seqlens_k", *in.cu_seqlens_k, in.key.size(1));
    return;
  }
  const int32_t* start = in.cu_seqlens_k->const_data_ptr<int32_t>();
  const int32_t* used = in.seqused_k->const_data_ptr<int32_t>();
  for (int64_t i = 0; i < std::min(in.seqused_k->size(0), in.cu_seqlens_k->size(0)); ++i) {
    if (start[i] < 0 || used[i] < 0 || int64_t{start[i]} + used[i] > in.key.size(1)) {
      check.fail("keys of sequence " + std::to_string(i),
                 "[" + std::to_string(start[i]) + ", " + std::to_string(int64_t{start[i]} + used[i]) + ")",
                 "a range inside [0, " + std::to_string(in.key.size(1)) + ")", "check cu_seqlens_k and seqused_k");
    }
  }
}

c10::SymDimVector out_sizes(const at::Tensor& query, const at::Tensor& value) {
  const auto q = query.sym_sizes();
  c10::SymDimVector sizes(q.begin(), q.end());
  sizes.back() = value.sym_size(-1);
  return sizes;
}

c10::SymDimVector lse_sizes(const at::Tensor& query) {
  const auto q = query.sym_sizes();
  c10::SymDimVector sizes{q[0]};
  if (q.size() == 3) {
    sizes.push_back(1);
  } else {
    sizes.append(q.begin() + 2, q.end() - 1);
  }
  sizes.push_back(q[1]);
  return sizes;
}

}  // namespace xformers::ops
