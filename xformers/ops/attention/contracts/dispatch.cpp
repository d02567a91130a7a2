#include "xformers/ops/attention/contracts/dispatch.h"

#include <c10/util/Exception.h>

#include <algorithm>
#include <sstream>

#include "xformers/kernels/base/error.h"
#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

std::vector<const Contract*> by_keys(std::initializer_list<const char*> keys) {
  std::vector<const Contract*> found;
  for (const char* key : keys) {
    if (key) found.push_back(&find_contract(key));
  }
  return found;
}

int64_t longest(at::IntArrayRef seqlens, int64_t otherwise) {
  return seqlens.empty() ? otherwise : *std::max_element(seqlens.begin(), seqlens.end());
}

// Few queries against many keys that heads share, in too few sequences to occupy the device: split the keys.
bool is_decoding(const AttentionRequest& request) {
  constexpr int64_t kMaxQueries = 32, kMinKeys = 256, kMaxTasks = 63;
  const at::Tensor &query = request.query, &key = request.key;
  if (query.dim() <= 3 || key.dim() != query.dim()) return false;
  const bool shared_heads = key.stride(-2) == 0 && key.size(-2) > 1;
  const int64_t sequences = request.packed() ? static_cast<int64_t>(request.seqlens_q.size()) : query.size(0);
  const int64_t tasks = sequences * query.size(2);
  return shared_heads && longest(request.seqlens_q, query.size(1)) <= kMaxQueries &&
         longest(request.seqlens_k, key.size(1)) >= kMinKeys && tasks >= 1 && tasks <= kMaxTasks;
}

std::string describe_request(const AttentionRequest& request) {
  std::ostringstream text;
  text << "\n  query " << describe(request.query) << " · key " << describe(request.key) << " · value "
       << describe(request.value) << " · attn_bias " << request.bias << " · p " << request.p;
  return text.str();
}

std::string describe_reasons(const std::string& name, const Reasons& reasons) {
  std::string text = "\n  " + name + " does not take them:";
  for (const std::string& reason : reasons) text += "\n    - " + reason;
  return text;
}

const char* function_name(bool backward) {
  return backward ? "memory_efficient_attention_backward" : "memory_efficient_attention_forward";
}

bool has_backward(const Contract& forward, const AttentionRequest& request) {
  DispatchOptions options{.backward = true, .pair_with = &forward};
  for (const Contract* backward : dispatch_order(request, options)) {
    if (!pair_objection(forward, *backward, request.p, static_cast<int64_t>(request.seqlens_q.size())) &&
        not_supported_reasons(*backward, request).empty()) {
      return true;
    }
  }
  return false;
}

// Why `contract` cannot be chosen: its own reasons, and what does not fit the other direction.
Reasons objections(const Contract& contract, const AttentionRequest& request, const DispatchOptions& options) {
  Reasons reasons = not_supported_reasons(contract, request);
  const auto num_sequences = static_cast<int64_t>(request.seqlens_q.size());
  if (options.pair_with) {
    const Contract& forward = options.backward ? *options.pair_with : contract;
    const Contract& backward = options.backward ? contract : *options.pair_with;
    if (auto objection = pair_objection(forward, backward, request.p, num_sequences)) {
      reasons.push_back(*std::move(objection));
    }
  }
  if (options.packed_lse && num_sequences >= 2 && *options.packed_lse != contract.packed_lse) {
    reasons.push_back(std::string("the log-sum-exp (LSE) of the sequences is ") +
                      (*options.packed_lse ? "packed" : "padded") + ", expected " +
                      (contract.packed_lse ? "packed: [1, heads, total]" : "padded: [sequences, heads, longest]"));
  }
  if (!options.backward && options.needs_gradient && !options.pair_with && reasons.empty() &&
      !has_backward(contract, request)) {
    reasons.emplace_back("no backward operator takes these inputs and the log-sum-exp (LSE) of this operator");
  }
  return reasons;
}

}  // namespace

std::optional<std::string> pair_objection(const Contract& forward, const Contract& backward, double p,
                                          int64_t num_sequences) {
  const std::string names = forward.name() + " and " + backward.name();
  if (p != 0 && forward.backend != backward.backend) {
    return "the operators are " + names +
           " with dropout, expected forward and backward of the same module, whose random "
           "numbers agree";
  }
  if (num_sequences >= 2 && forward.packed_lse != backward.packed_lse) {
    const auto format = [](const Contract& c) { return c.packed_lse ? "packed" : "padded"; };
    return "the operators are " + names + " for " + std::to_string(num_sequences) +
           " sequences, expected the same format of the log-sum-exp (LSE): " + forward.name() + " has it " +
           format(forward) + ", " + backward.name() + " " + format(backward);
  }
  return std::nullopt;
}

std::vector<const Contract*> dispatch_order(const AttentionRequest& request, const DispatchOptions& options) {
  if (options.backward) {
    // flash3 has a backward, which only its own dropout-free forward asks for by name.
    return by_keys({"fa2B", "cutlassB", "genericB"});
  }
  const char* flash3 = options.use_fa3 ? "fa3F" : nullptr;
  if (!options.needs_gradient && !request.partial && is_decoding(request)) {
    if (request.bias_is(kPackedKeys)) return by_keys({"triton_splitKF", flash3, "fa2F", "cutlassF", "genericF"});
    return by_keys({"fa2F", "triton_splitKF", "cutlassF", "genericF"});
  }
  return by_keys({flash3, "fa2F", "cutlassF", "triton_splitKF", "genericF"});
}

const Contract& dispatch(const AttentionRequest& given, const DispatchOptions& options) {
  AttentionRequest request = given;
  request.num_groups = std::nullopt;
  std::string refused;
  for (const Contract* contract : dispatch_order(request, options)) {
    const Reasons reasons = objections(*contract, request, options);
    if (reasons.empty()) return *contract;
    refused += describe_reasons(contract->name(), reasons);
  }
  C10_THROW_ERROR(NotImplementedError, std::string(function_name(options.backward)) +
                                           ": no operator takes these inputs." + describe_request(request) + refused);
}

void require_supported(const Contract& contract, const AttentionRequest& request, const std::string& name) {
  const Reasons reasons = not_supported_reasons(contract, request);
  if (reasons.empty()) return;
  throw Error(std::string(function_name(contract.backward)) + ": operator " + name +
              " does not take these inputs.  Fix: leave op out, and the library chooses one that does." +
              describe_request(request) + describe_reasons(name, reasons));
}

}  // namespace xformers::ops
