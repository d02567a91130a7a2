#include "xformers/ops/sequence_parallel/process_group.h"

#include <ATen/core/dispatch/Dispatcher.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <c10/util/Exception.h>

#include <cstdlib>
#include <cstring>
#include <map>
#include <mutex>
#include <optional>
#include <set>
#include <torch/csrc/distributed/c10d/GroupRegistry.hpp>

#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

bool is_set(const char* variable) {
  const char* value = std::getenv(variable);
  return value != nullptr && std::string_view(value) == "1";
}

// What is remembered with a group: by name, until another group has the name.
struct GroupState {
  c10::weak_intrusive_ptr<c10d::ProcessGroup> group;
  bool may_overlap;
  std::optional<int64_t> num_stripes{};
  std::set<std::string> checked{};
};

std::mutex states_mutex;

GroupState& state_of(const std::string& name) {
  static auto* states = new std::map<std::string, GroupState>();
  const c10::intrusive_ptr<c10d::ProcessGroup> group = c10d::resolve_process_group(name);
  const auto found = states->find(name);
  if (found != states->end() && found->second.group.lock() == group) return found->second;
  return states
      ->insert_or_assign(name, GroupState{c10::weak_intrusive_ptr<c10d::ProcessGroup>(group),
                                          !is_set("DISABLE_FUSED_SEQUENCE_PARALLEL")})
      .first->second;
}

struct GroupNumbers {
  std::mutex mutex;
  std::map<std::string, int64_t, std::less<>> numbers;
  std::vector<const std::string*> names;
};
GroupNumbers& group_numbers() {
  static auto* numbers = new GroupNumbers();
  return *numbers;
}

// Boxed arguments: releases of torch differ in how these operators take the name.
at::Tensor call_functional(const char* name, torch::jit::Stack stack) {
  c10::Dispatcher::singleton().findSchemaOrThrow(name, "").callBoxed(stack);
  return stack.at(0).toTensor();
}

at::Tensor as_bytes(const at::Tensor& x) { return x.contiguous().view({x.numel()}).view(at::kByte); }

at::Tensor from_bytes(const at::Tensor& bytes, const at::Tensor& like, int64_t rows) {
  std::vector<int64_t> sizes = like.sizes().vec();
  sizes[0] = rows;
  return bytes.view(like.scalar_type()).view(sizes);
}

}  // namespace

int64_t number_of_group(std::string_view name) {
  GroupNumbers& all = group_numbers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  const auto [place, is_new] = all.numbers.try_emplace(std::string(name), static_cast<int64_t>(all.names.size()));
  if (is_new) all.names.push_back(&place->first);
  return place->second;
}

std::string_view group_of_number(int64_t number) {
  GroupNumbers& all = group_numbers();
  const std::lock_guard<std::mutex> lock(all.mutex);
  return *all.names.at(number);
}

Group::Group(const char* operation_arg, std::string_view name_arg) : operation(operation_arg), name(name_arg) {
  try {
    const c10::intrusive_ptr<c10d::ProcessGroup> group = c10d::resolve_process_group(name);
    rank = group->getRank();
    size = group->getSize();
  } catch (const c10::Error&) {
    Check(operation).fail("process_group", "'" + name + "', which this process does not have",
                          "the group_name of a process group that holds this rank and is not destroyed",
                          "call torch.distributed.init_process_group or new_group first");
  }
  if (rank < 0) {
    Check(operation).fail("process_group", "'" + name + "', which does not hold this rank", "a group of this rank",
                          "call only on the ranks of the group");
  }
}

bool Group::may_overlap() const {
  const std::lock_guard<std::mutex> lock(states_mutex);
  return state_of(name).may_overlap;
}

void Group::keep_num_stripes(int64_t num_stripes) const {
  const std::lock_guard<std::mutex> lock(states_mutex);
  std::optional<int64_t>& kept = state_of(name).num_stripes;
  if (num_stripes < 1) Check(operation).fail("num_stripes", std::to_string(num_stripes), "1 or more", "leave it out");
  if (kept.value_or(num_stripes) != num_stripes) {
    Check(operation).fail("num_stripes", std::to_string(num_stripes),
                          std::to_string(*kept) + ", as in the calls before with group '" + name + "'",
                          "use one number for a group");
  }
  kept = num_stripes;
}

template <class Fn>
auto Group::guarded(const char* step, const Fn& fn) const {
  const auto failed = [&](std::string_view why) {
    throw DeviceError(std::string(operation) + ": " + step + " failed on rank " + std::to_string(rank) + " of " +
                      std::to_string(size) + " (group '" + name + "'): " + std::string(why) +
                      ".  Fix: look at the other ranks for the first error, then make a new group");
  };
  try {
    return fn();
  } catch (const c10::Error& error) {
    failed(error.what_without_backtrace());
  } catch (const std::exception& error) {
    failed(error.what());
  }
  return fn();  // not reached
}

at::Tensor Group::exchange_bytes(const at::Tensor& bytes, std::vector<int64_t> receives,
                                 std::vector<int64_t> sends) const {
  return call_functional("_c10d_functional::all_to_all_single", {bytes, std::move(receives), std::move(sends), name});
}

at::Tensor Group::start_gather(const char* step, const at::Tensor& x) const {
  if (size == 1) return x.contiguous();
  if (x.numel() == 0) {
    std::vector<int64_t> sizes = x.sizes().vec();
    sizes[0] *= size;
    return at::empty(sizes, x.options());
  }
  return guarded(step, [&] {
    const at::Tensor bytes = call_functional("_c10d_functional::all_gather_into_tensor", {as_bytes(x), size, name});
    return from_bytes(bytes, x, size * x.size(0));
  });
}

at::Tensor Group::start_exchange_rows(const char* step, const at::Tensor& x, const std::vector<int64_t>& receives,
                                      const std::vector<int64_t>& sends) const {
  return guarded(step, [&] {
    const int64_t row_bytes = c10::multiply_integers(x.sizes().slice(1)) * static_cast<int64_t>(x.element_size());
    std::vector<int64_t> bytes_in, bytes_out;
    int64_t rows = 0;
    for (int64_t i = 0; i < size; ++i) {
      bytes_in.push_back(receives[i] * row_bytes);
      bytes_out.push_back(sends[i] * row_bytes);
      rows += receives[i];
    }
    return from_bytes(exchange_bytes(as_bytes(x), std::move(bytes_in), std::move(bytes_out)), x, rows);
  });
}

at::Tensor Group::start_exchange(const char* step, const at::Tensor& x) const {
  if (size == 1 || x.numel() == 0) return x;
  const std::vector<int64_t> even(size, x.size(0) / size);
  return start_exchange_rows(step, x, even, even);
}

at::Tensor Group::start_shift(const char* step, const at::Tensor& x, int64_t send_to, int64_t receive_from) const {
  if (x.numel() == 0) return x;
  std::vector<int64_t> receives(size), sends(size);
  sends[send_to] = receives[receive_from] = x.size(0);
  return start_exchange_rows(step, x, receives, sends);
}

void Group::wait(const char* step, const at::Tensor& result) const {
  if (size == 1) return;
  guarded(step, [&] { return call_functional("_c10d_functional::wait_tensor", {result}); });
}

void Group::check_same_call(const std::string& signature, const at::Device& device) const {
  constexpr int64_t kBytes = 1024;  // a longer text is cut: its hash is in front
  if (size == 1) return;
  const std::string text = std::string(operation) + signature;
  {
    const std::lock_guard<std::mutex> lock(states_mutex);
    if (!state_of(name).checked.insert(text).second && !is_set("XFORMERS_CHECK_RANKS")) return;
  }
  const uint64_t hash = std::hash<std::string>()(text);
  at::Tensor mine = at::empty({kBytes}, at::kByte).zero_();
  auto* bytes = mine.mutable_data_ptr<uint8_t>();
  std::memcpy(bytes, &hash, sizeof hash);
  std::memcpy(bytes + sizeof hash, text.data(), std::min<size_t>(text.size(), kBytes - sizeof hash - 1));
  const at::Tensor gathered = start_gather("comparing calls", mine.to(device));
  wait("comparing calls", gathered);
  const at::Tensor all = gathered.cpu();
  const auto* theirs = all.const_data_ptr<uint8_t>();
  const auto text_of = [&](int64_t r) { return reinterpret_cast<const char*>(theirs + r * kBytes + sizeof hash); };
  std::string differing;
  int64_t example = -1;
  for (int64_t r = 1; r < size; ++r) {
    if (std::memcmp(theirs, theirs + r * kBytes, kBytes) == 0) continue;
    if (example < 0) example = r;
    differing += (differing.empty() ? "" : ", ") + std::to_string(r);
  }
  if (example < 0) return;
  {
    const std::lock_guard<std::mutex> lock(states_mutex);
    state_of(name).checked.erase(text);
  }
  Check(operation).fail("the call of rank " + differing + " of group '" + name + "'", text_of(example),
                        std::string(text_of(0)) + " as on rank 0", "call alike on every rank of the group");
}

at::Tensor sum_in_order(const std::vector<at::Tensor>& parts) {
  const at::Tensor& first = parts.at(0);
  at::Tensor sum = at::empty_like(first, first.options().dtype(compute_dtype(first)));
  sum.copy_(first);
  for (size_t i = 1; i < parts.size(); ++i) sum.add_(parts[i]);
  return sum.to(first.scalar_type());
}

}  // namespace xformers::ops
