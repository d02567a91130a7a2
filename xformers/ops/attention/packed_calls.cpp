// Remembers the lengths of packed sequences while somebody profiles: traces hold shapes of tensors, not what they hold.
//
// Calls are seen by a callback of LibTorch's RecordFunction, as its own profiler sees them: it is there between begin
// and end alone. Offsets are kept as tensors and read at the end, so that no call waits for a device.
#include <ATen/core/Tensor.h>
#include <ATen/record_function.h>
#include <c10/util/StringUtil.h>
#include <torch/library.h>

#include <cstring>
#include <mutex>
#include <string>
#include <vector>

#include "xformers/kernels/base/check.h"

namespace xformers::ops {
namespace {

constexpr const char* kLengths[] = {"cu_seqlens_q", "cu_seqlens_k", "seqused_k", "seqlen_k"};

struct PackedCall {
  std::string name;
  std::vector<std::pair<const char*, at::Tensor>> lengths;
};

struct Recording {
  std::mutex mutex;
  at::CallbackHandle handle = at::INVALID_CALLBACK_HANDLE;
  std::vector<PackedCall> calls;
};

Recording& recording() {
  static Recording instance;
  return instance;
}

bool holds_data(const c10::IValue& value) {
  if (!value.isTensor() || !value.toTensor().defined()) return false;
  const at::Tensor& tensor = value.toTensor();
  return !tensor.is_meta() && tensor.has_storage() && !tensor.key_set().has(c10::DispatchKey::Python);
}

std::unique_ptr<at::ObserverContext> on_call(const at::RecordFunction& function) {
  const char* name = function.name();
  if (!std::strstr(name, "attention") && !std::strstr(name, "flash_")) return nullptr;
  const auto schema = function.operator_schema();
  if (!schema) return nullptr;
  PackedCall call{name, {}};
  const auto inputs = function.inputs();
  for (size_t i = 0; i < schema->arguments().size() && i < inputs.size(); ++i) {
    for (const char* wanted : kLengths) {
      if (schema->arguments()[i].name() == wanted && holds_data(inputs[i])) {
        call.lengths.emplace_back(wanted, inputs[i].toTensor());
      }
    }
  }
  if (call.lengths.empty()) return nullptr;
  const std::lock_guard lock(recording().mutex);
  recording().calls.push_back(std::move(call));
  return nullptr;
}

void begin_recording() {
  const std::lock_guard lock(recording().mutex);
  if (recording().handle != at::INVALID_CALLBACK_HANDLE) {
    fail({.where = "profiler",
          .name = "the recording of packed calls",
          .got = "running",
          .expected = "one at a time",
          .fix = "end it first"});
  }
  recording().calls.clear();
  recording().handle =
      at::addGlobalCallback(at::RecordFunctionCallback(on_call).needsInputs(true).scopes({at::RecordScope::FUNCTION}));
}

// [{"operator": name, "cu_seqlens_q": [0, 5, 9], ...}, ...] in the order of the calls
std::string end_recording() {
  std::vector<PackedCall> calls;
  {
    const std::lock_guard lock(recording().mutex);
    if (recording().handle != at::INVALID_CALLBACK_HANDLE) at::removeCallback(recording().handle);
    recording().handle = at::INVALID_CALLBACK_HANDLE;
    calls.swap(recording().calls);
  }
  std::string text;
  for (const PackedCall& call : calls) {
    text += c10::str(text.empty() ? "[" : ", ", "{\"operator\": \"", call.name, "\"");
    for (const auto& [name, tensor] : call.lengths) {
      const at::Tensor on_host = tensor.to(at::kCPU, at::kLong).contiguous();
      const int64_t* numbers = on_host.const_data_ptr<int64_t>();
      text += c10::str(", \"", name, "\": [", c10::Join(", ", c10::ArrayRef<int64_t>(numbers, on_host.numel())), "]");
    }
    text += "}";
  }
  return text.empty() ? "[]" : text + "]";
}

}  // namespace
}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("_record_packed_calls() -> ()", xformers::ops::begin_recording);
  m.def("_recorded_packed_calls() -> str", xformers::ops::end_recording);
}
