#include "xformers/ops/attention/contracts/reasons.h"

#include <ATen/Context.h>
#include <ATen/core/dispatch/Dispatcher.h>

#include <algorithm>

#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

template <class Got>
void add(Reasons& reasons, const char* name, const Got& got, std::string_view expected) {
  add_reason(reasons, name, c10::str(got), expected);
}

std::string in_words(const CudaCapability& capability) {
  return std::to_string(capability.major) + "." + std::to_string(capability.minor);
}

void add_device_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  const at::Device device = request.query.device();
  if (!device.is_cuda() && !device.is_meta() && !(device.is_cpu() && contract.runs_on_cpu)) {
    add(reasons, "query.device", device.str(), contract.runs_on_cpu ? "cuda or cpu" : "cuda");
  } else if (!has_attention_kernels(device.type())) {
    add_reason(reasons, "query.device", device.str(), "cpu: this library was built without CUDA kernels",
               "build it with them, from its source: pip install . -C cmake.define.XFORMERS_CUDA=ON (nvcc 13); or move "
               "the tensors with .cpu()");
  }
  if (!device.is_cuda() || !request.capability) return;
  if (*request.capability < contract.min_capability) {
    add(reasons, "the device's compute capability", in_words(*request.capability),
        in_words(contract.min_capability) + " or higher");
  }
  if (request.query.scalar_type() == at::kBFloat16 && request.capability->major < 8) {
    add(reasons, "query.dtype", "bf16 on a device of compute capability " + in_words(*request.capability),
        "fp16 or fp32 below 8.0");
  }
}

void add_dtype_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  const at::ScalarType dtype = request.query.scalar_type();
  if (!contract.takes(dtype)) {
    std::string expected = "fp16 or bf16";
    if (contract.takes_fp32) expected = "fp32, " + expected;
    if (contract.takes_fp64) expected = "fp64, " + expected;
    add(reasons, "query.dtype", describe_dtype(dtype), expected);
  }
  if (request.quantized() && !contract.quantized_keys) {
    add(reasons, "key.dtype", "int32 (quantised)",
        contract.backward ? "the query's: quantised keys have no gradient" : "the query's");
  }
  const auto output_dtype = request.output_dtype;
  if (output_dtype && *output_dtype != dtype && !contract.output_dtype) {
    add(reasons, "output_dtype", describe_dtype(*output_dtype),
        std::string("None or ") + describe_dtype(dtype) + ", the query's");
  }
}

void add_layout_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  if (request.query.dim() == 5 && !contract.groups) {
    add(reasons, "query.ndim", 5, "3 or 4: this operator takes no groups of heads (BMGHK)");
  }
}

void add_bias_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  const BiasRow* row = find_bias(request.bias);
  if (row ? !contract.takes(*row) : !contract.derived_biases) {
    std::string expected;
    for (const BiasRow& taken : bias_rows()) {
      if (contract.takes(taken)) expected += (expected.empty() ? "" : ", ") + std::string(taken.name);
    }
    add(reasons, "the type of attn_bias", request.bias, "exactly one of " + expected);
  }
  if (contract.backward && request.bias_requires_grad && !contract.bias_gradient) {
    add(reasons, "attn_bias.requires_grad", "True", "False: this operator has no gradient of the bias");
  }
}

void add_modifier_reasons(Reasons& reasons, const Contract& contract, const AttentionRequest& request) {
  const bool packed_bias = request.packed() && request.dense_bias;
  if (request.softcap != 0 && !contract.softcap_and_alibi) {
    add(reasons, "softcap", request.softcap, "0: this operator does not cap scores");
  }
  if (request.alibi_slopes && !contract.softcap_and_alibi) {
    add(reasons, "alibi_slopes", "given", "None: this operator does not lower scores by distance");
  }
  if (contract.all_modifiers) return;
  if (contract.backward && request.slopes_require_grad) {
    add(reasons, "alibi_slopes.requires_grad", "True", "False: this operator has no gradient of the slopes");
  }
  if (request.sinks) add(reasons, "sinks", "given", "None: this operator has none");
  if (packed_bias) {
    add(reasons, "attn_bias", request.bias + " with a tensor", "one without: this operator adds none to sequences");
  }
}

}  // namespace

bool has_attention_kernels(at::DeviceType device) {
  if (device == at::kMeta) return true;
  if (device != at::kCPU && device != at::kCUDA) return false;
  static const auto op = c10::Dispatcher::singleton().findSchemaOrThrow("xformers::attention_forward", "");
  return op.hasKernelForDispatchKey(device == at::kCPU ? at::DispatchKey::CPU : at::DispatchKey::CUDA);
}

Reasons shape_not_supported_reasons(const Contract& contract, int64_t /*seqlen_q*/, int64_t /*seqlen_k*/,
                                    int64_t head_dim, int64_t head_dim_v) {
  Reasons reasons;
  if (head_dim != head_dim_v && !contract.different_value_head_dim) {
    add(reasons, "value.head_dim", head_dim_v, std::to_string(head_dim) + " like the query's");
  }
  if (std::max(head_dim, head_dim_v) > contract.max_head_dim) {
    add(reasons, "head_dim", std::max(head_dim, head_dim_v), std::to_string(contract.max_head_dim) + " or less");
  }
  add_operator_shape_reasons(reasons, contract, head_dim);
  return reasons;
}

Reasons not_supported_reasons(const Contract& contract, const AttentionRequest& request) {
  const at::Tensor &q = request.query, &k = request.key, &v = request.value;
  if (q.dim() < 3 || q.dim() > 5 || k.dim() != q.dim() || v.dim() != q.dim()) {
    return {"query.ndim, key.ndim and value.ndim are " + std::to_string(q.dim()) + ", " + std::to_string(k.dim()) +
            " and " + std::to_string(v.dim()) + ", expected 3, 4 or 5 for all"};  // nothing else can be asked
  }
  Reasons reasons = shape_not_supported_reasons(contract, q.size(1), k.size(1), q.size(-1), request.head_dim_v());
  add_device_reasons(reasons, contract, request);
  add_dtype_reasons(reasons, contract, request);
  add_layout_reasons(reasons, contract, request);
  add_bias_reasons(reasons, contract, request);
  add_modifier_reasons(reasons, contract, request);
  if (request.p != 0 && !contract.dropout) add(reasons, "p", request.p, "0: this operator has no dropout");
  if (request.partial && !contract.partial) reasons.emplace_back("this operator has no partial attention");
  if (contract.not_built) {
    reasons.push_back(std::string("this operator was not built (") + contract.not_built +
                      "), see: python -m xformers.info");
  }
  if (!contract.deterministic && at::globalContext().deterministicAlgorithms()) {
    reasons.emplace_back(
        "this operator is not deterministic, and torch.use_deterministic_algorithms(True) is in force");
  }
  add_operator_reasons(reasons, contract, request);
  return reasons;
}

}  // namespace xformers::ops
