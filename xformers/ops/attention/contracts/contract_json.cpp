// The class attributes of the Python operators, so that they come from the one table.
#include <sstream>
#include <vector>

#include "xformers/ops/attention/contracts/contract.h"

namespace xformers::ops {
namespace {

std::string in_quotes(std::string_view text) { return '"' + std::string(text) + '"'; }
std::string in_json(bool value) { return value ? "true" : "false"; }
std::string in_json(int64_t value) { return std::to_string(value); }
std::string in_json(const std::vector<std::string>& items) {
  std::string text = "[";
  for (const std::string& item : items) text += (text.size() > 1 ? ", " : "") + item;
  return text + "]";
}
std::string in_json(const Tolerances& tolerances, bool with_fp64) {
  std::ostringstream text;
  text << R"({"float32": )" << tolerances[0] << R"(, "float16": )" << tolerances[1] << R"(, "bfloat16": )"
       << tolerances[2];
  if (with_fp64) text << R"(, "float64": )" << tolerances[0];
  return text.str() + "}";
}

}  // namespace

std::string contract_json(const Contract& c) {
  std::vector<std::string> devices{in_quotes("cuda")}, dtypes, biases;
  if (c.runs_on_cpu) devices.push_back(in_quotes("cpu"));
  for (const auto& [dtype, name] : {std::pair{at::kFloat, "float32"}, std::pair{at::kHalf, "float16"},
                                    std::pair{at::kBFloat16, "bfloat16"}, std::pair{at::kDouble, "float64"}}) {
    if (c.takes(dtype)) dtypes.push_back(in_quotes(name));
  }
  for (const BiasRow& bias : bias_rows()) {
    if (c.takes(bias)) biases.push_back(in_quotes(bias.name));
  }
  const std::pair<const char*, std::string> attributes[] = {
      {"KEY", in_quotes(c.key)},
      {"MODULE", in_quotes(c.module)},
      {"BACKWARD", in_json(c.backward)},
      {"NAME", in_quotes(c.name())},
      {"VERSION", in_quotes(c.version)},
      {"OPERATOR_CATEGORY", in_quotes("memory_efficient_attention")},
      {"AVAILABLE", in_json(!c.not_built)},
      {"NOT_BUILT", in_quotes(c.not_built ? c.not_built : "")},  // why
      {"SUPPORTED_DEVICES", in_json(devices)},
      {"CUDA_MINIMUM_COMPUTE_CAPABILITY", in_json(std::vector<std::string>{std::to_string(c.min_capability.major),
                                                                           std::to_string(c.min_capability.minor)})},
      {"SUPPORTED_DTYPES", in_json(dtypes)},
      {"SUPPORTED_MAX_K", in_json(c.max_head_dim)},
      {"SUPPORTED_MIN_K", in_json(int64_t{0})},
      {"SUPPORTED_ATTN_BIAS_TYPES", in_json(biases)},
      {"SUPPORTS_DROPOUT", in_json(c.dropout)},
      {"SUPPORTS_CUSTOM_SCALE", in_json(true)},
      {"SUPPORTS_DIFFERENT_VALUE_EMBED", in_json(c.different_value_head_dim)},
      {"SUPPORTS_OUTPUT_DTYPE", in_json(c.output_dtype)},
      {"SUPPORTS_PARTIAL", in_json(c.partial)},
      {"SUPPORTS_BMGHK", in_json(c.groups)},
      {"SUPPORTS_ATTN_BIAS_GRAD", in_json(c.bias_gradient)},
      {"IS_DETERMINISTIC", in_json(c.deterministic)},
      {"VARLEN_LSE_PACKED", in_json(c.packed_lse)},
      {"LSE_PAD_TO", in_json(c.lse_pad_to)},
      {"LSE_FLOAT64", in_json(c.fp64_lse)},
      {"_TEST_BATCH_SIZES", "[1, 300]"},
      {"_TEST_K", "[32, 128]"},
      {"ERROR_ATOL", in_json(c.atol, c.takes_fp64)},
      {"ERROR_RTOL", in_json(c.rtol, c.takes_fp64)},
  };
  std::string text;
  for (const auto& [name, value] : attributes) text += (text.empty() ? "{" : ", ") + in_quotes(name) + ": " + value;
  return text + "}";
}

}  // namespace xformers::ops
