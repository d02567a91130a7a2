// A process group by its name, as far as operators need it: its size, this rank, and bytes that move. Nothing of it is
// LibTorch's own C++ interface but the first two virtual functions of c10d::ProcessGroup; what moves goes through the
// dispatcher's _c10d_functional operators, so one build serves every release of torch that has them.
#pragma once

#include <ATen/core/Tensor.h>

#include <string>
#include <string_view>
#include <vector>

namespace xformers::ops {

// A number for a group's name, for nodes of autograd; the same name has the same number.
int64_t number_of_group(std::string_view name);
std::string_view group_of_number(int64_t number);

class Group {
 public:
  // xformers::Error where no group of this process has the name: it is destroyed, or does not hold this rank.
  Group(const char* operation, std::string_view name);

  const char* operation;
  std::string name;
  int64_t rank = 0, size = 1;

  // Whether transfers may hide behind products: not where DISABLE_FUSED_SEQUENCE_PARALLEL=1 was set at the group's
  // first call.
  bool may_overlap() const;

  // The same on every call with this group, or xformers::Error.
  void keep_num_stripes(int64_t num_stripes) const;

  // xformers::Error on every rank, with both texts, where ranks call with different signatures. At the first call of
  // each; always where XFORMERS_CHECK_RANKS=1.
  void check_same_call(const std::string& signature, const at::Device& device) const;

  // Transfers. Each start_... returns where the result will be once wait() has been called on it; what is sent must not
  // be written until then. A failure is an xformers::DeviceError that names operation, step, group and rank.
  at::Tensor start_gather(const char* step, const at::Tensor& x) const;  // of [n, ...]: [size n, ...], by rank
  // Part i of x along dim 0, which has `size` equal ones, to rank i; part i of the result is from rank i.
  at::Tensor start_exchange(const char* step, const at::Tensor& x) const;
  // x to one rank; from another what has x's shape and dtype.
  at::Tensor start_shift(const char* step, const at::Tensor& x, int64_t send_to, int64_t receive_from) const;
  // Rows of x, sends[i] of them to rank i; receives[i] rows from rank i.
  at::Tensor start_exchange_rows(const char* step, const at::Tensor& x, const std::vector<int64_t>& receives,
                                 const std::vector<int64_t>& sends) const;
  void wait(const char* step, const at::Tensor& result) const;

 private:
  template <class Fn>
  auto guarded(const char* step, const Fn& fn) const;
  at::Tensor exchange_bytes(const at::Tensor& bytes, std::vector<int64_t> receives, std::vector<int64_t> sends) const;
};

// The sum over ranks of what each of them has, in their order, in fp32 (fp64 for fp64), rounded once. `parts` are
// alike.
at::Tensor sum_in_order(const std::vector<at::Tensor>& parts);

}  // namespace xformers::ops
