// Checks of single operators: alignment, and combinations of layout and bias that a row of the table cannot say.
#include <numeric>
#include <string>

#include "xformers/kernels/params/kv_rows.h"
#include "xformers/ops/attention/contracts/reasons.h"

namespace xformers::ops {
namespace {

// Elements of which the cutlass operator reads or writes vectors.
int64_t cutlass_alignment(const AttentionRequest& request) {
  if (!request.query.is_cuda() || !request.capability) return 1;
  const bool half = request.query.element_size() == 2;
  if (request.capability->major >= 8) return half ? 8 : 4;
  return request.capability->major == 7 && half ? 8 : 1;
}

void add_cutlass_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  const int64_t alignment = cutlass_alignment(request);
  check_lastdim_alignment_stride1(reasons, "query", request.query, alignment);
  if (contract.backward) check_lastdim_alignment_stride1(reasons, "key", request.key, alignment);
  check_lastdim_alignment_stride1(reasons, "value", request.value, alignment);
}

// Causal from the top-left corner is what flash computes only where both corners coincide.
void check_equal_lengths(Reasons& reasons, const AttentionRequest& request) {
  if (!request.bias_is(kTopLeft)) return;
  if (request.packed() ? request.seqlens_q == request.seqlens_k : request.query.size(1) == request.key.size(1)) return;
  reasons.push_back(request.bias +
                    " is causal from the top-left corner, which this operator takes only where every sequence has as "
                    "many keys as queries; use the FromBottomRight class, or another operator");
}

// [batch, seqlen, groups, heads, head_dim] -> [batch, seqlen, groups * heads, head_dim] without a copy
void check_collapsible(Reasons& reasons, const char* name, const at::Tensor& x) {
  if (x.dim() != 5) return;
  const int64_t groups = x.size(2), heads = x.size(3);
  if (groups == 1 || heads == 1 || x.stride(3) == 0 || x.stride(2) == heads * x.stride(3)) return;
  reasons.push_back(std::string(name) + " has shape " + c10::str(x.sizes()) + " and strides " + c10::str(x.strides()) +
                    ", expected groups and heads that are one dimension in memory, or `expand`ed heads");
}

void check_pages(Reasons& reasons, const AttentionRequest& request, int64_t multiple) {
  if (!request.bias_is(kPaged)) return;
  const int64_t size = request.page_size;
  if (size < 1 || size % multiple != 0) {
    add_reason(reasons, "page_size", std::to_string(size),
               multiple > 1 ? "a multiple of " + std::to_string(multiple) : "1 or more");
  } else if (request.key.size(1) % size != 0) {
    add_reason(reasons, "key.seqlen", std::to_string(request.key.size(1)),
               "a multiple of page_size " + std::to_string(size));
  }
}

void add_flash_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  constexpr int64_t kAlignment = 8, kPageMultiple = 256;
  for (const auto& [name, tensor] :
       {std::pair{"query", &request.query}, std::pair{"key", &request.key}, std::pair{"value", &request.value}}) {
    if (tensor->scalar_type() != at::kInt) check_lastdim_alignment_stride1(reasons, name, *tensor, kAlignment);
    if (!contract.backward) check_collapsible(reasons, name, *tensor);
  }
  check_equal_lengths(reasons, request);
  check_pages(reasons, request, kPageMultiple);
  constexpr int64_t kMaxHeadDimDropout = 224;  // of devices with less shared memory than 8.0 and 9.0
  if (contract.backward && request.p != 0 && request.query.size(-1) > kMaxHeadDimDropout && request.capability &&
      *request.capability != CudaCapability{8, 0} && *request.capability != CudaCapability{9, 0}) {
    add_reason(reasons, "head_dim", std::to_string(request.query.size(-1)) + " with dropout",
               std::to_string(kMaxHeadDimDropout) + " or less on this device");
  }
}

void check_quantized_rows(Reasons& reasons, const AttentionRequest& request) {
  const int64_t head_dim = request.query.size(-1), words = request.key.size(-1);
  const auto wrong = [&](const std::string& name, int64_t got, const std::string& expected) {
    add_reason(reasons, name, std::to_string(got), expected);
  };
  const bool int4 = request.quantized() && !request.fp8;
  const auto groups = request.num_groups;
  if (groups && *groups != 1 && (!int4 || (*groups != 2 && *groups != 4 && *groups != 8))) {
    wrong("NUM_GROUPS", *groups, int4 ? "1, 2, 4 or 8" : "1 for keys that are not int4");
  }
  if (!request.quantized()) return;
  if (request.value.size(-1) != words) {
    wrong("value.size(-1)", request.value.size(-1), std::to_string(words) + " like the key's");
  }
  if (request.fp8) {
    if (words * 4 != head_dim)
      wrong("key.size(-1)", words, std::to_string(head_dim) + " / 4 words of four fp8 numbers");
    return;
  }
  const int64_t held = int4_groups(head_dim, words);
  if (!int4_rows_fit(head_dim, held) || (groups && held != *groups)) {
    wrong("key.size(-1)", words,
          (groups ? std::to_string(*groups) : std::string("1, 2, 4 or 8")) + " coefficient words (NUM_GROUPS) and " +
              std::to_string(head_dim) + " / 8 words of eight int4 numbers");
  }
}

void add_split_k_reasons(Reasons& reasons, const AttentionRequest& request) {
  constexpr int64_t kAlignment = 8;
  check_lastdim_alignment_stride1(reasons, "query", request.query, kAlignment);
  if (!request.quantized()) {
    check_lastdim_alignment_stride1(reasons, "key", request.key, kAlignment);
    check_lastdim_alignment_stride1(reasons, "value", request.value, kAlignment);
  }
  check_quantized_rows(reasons, request);
  const int64_t total = std::accumulate(request.seqlens_q.begin(), request.seqlens_q.end(), int64_t{0});
  if (request.packed() && request.query.size(1) != total) {
    add_reason(reasons, "query.seqlen", std::to_string(request.query.size(1)),
               std::to_string(total) + ", the sum of the lengths");
  }
  check_pages(reasons, request, 1);
  if (request.bias == "Tensor" && request.dense_bias && request.dense_bias->dim() != 4 &&
      request.dense_bias->dim() != 5) {
    add_reason(reasons, "attn_bias.ndim", std::to_string(request.dense_bias->dim()), "4 or 5");
  }
  if (request.split_k < 0) {
    add_reason(reasons, "SPLIT_K", std::to_string(request.split_k), "None or 1 or more");
  }
}

}  // namespace

void check_lastdim_alignment_stride1(Reasons& reasons, const char* name, const at::Tensor& x, int64_t alignment) {
  const auto wrong = [&](const char* what, int64_t got, const std::string& expected) {
    add_reason(reasons, std::string(name) + what, std::to_string(got), expected);
  };
  const std::string multiple = "a multiple of " + std::to_string(alignment);
  if (x.size(-1) % alignment != 0) {
    wrong(".size(-1)", x.size(-1), multiple);
  } else if (x.stride(-2) % alignment != 0) {
    wrong(".stride(-2)", x.stride(-2), multiple);
  }
  if (x.stride(-1) > 1) wrong(".stride(-1)", x.stride(-1), "1: call .contiguous()");
}

void add_operator_shape_reasons(Reasons& reasons, const Contract& contract, int64_t head_dim) {
  const auto expect = [&](const char* expected) {
    add_reason(reasons, "head_dim", std::to_string(head_dim), expected);
  };
  if (contract.backend == Backend::kFlash3 && head_dim != 64 && head_dim != 128 &&
      (contract.backward || head_dim != 256)) {
    expect(contract.backward ? "64 or 128" : "64, 128 or 256");
  }
  if (contract.backend == Backend::kSplitK && head_dim % 8 != 0) expect("a multiple of 8");
}

void add_operator_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  switch (contract.backend) {
    case Backend::kCutlass: return add_cutlass_reasons(reasons, contract, request);
    case Backend::kFlash:
    case Backend::kFlash3: return add_flash_reasons(reasons, contract, request);
    case Backend::kSplitK: return add_split_k_reasons(reasons, request);
    case Backend::kGeneric: return check_quantized_rows(reasons, request);
    case Backend::kCk:
    case Backend::kCkDecoder:
    case Backend::kCkSplitK: return;
  }
}

}  // namespace xformers::ops
