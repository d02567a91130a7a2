// Collectives with gradients, each the adjoint of another, and whole weights from parts and back.
#include <ATen/ops/constant_pad_nd.h>

#include "xformers/ops/common/operator_node.h"
#include "xformers/ops/sequence_parallel/products.h"
#include "xformers/ops/sequence_parallel/sequence_parallel.h"

namespace xformers::ops {
namespace {

// An operator of one tensor and a group; Kind has a name, the result's shape, what it computes, and its adjoint.
template <class Kind>
struct Collective {
  static constexpr const char* kName = Kind::kName;
  using Result = at::Tensor;
  at::Tensor x;
  std::string_view process_group_name{};

  static constexpr auto arguments() {
    using A = Collective;
    return std::tuple{arg("x", &A::x), arg("process_group_name", &A::process_group_name).required()};
  }
  void check() const {
    const Check check(kName);
    const Group group(kName, process_group_name);
    if (x.dim() < 1 && (Kind::kGrows || Kind::kDivides)) {
      check.fail("x", describe(x), "1 or more dimensions", "add a dimension");
    }
    if (!Kind::kDivides) return;
    const int64_t dim = Kind::kLastDim ? x.dim() - 1 : 0;
    if (x.sym_size(dim) % group.size != 0) {
      check.fail("x.size(" + std::to_string(dim) + ")", std::to_string(x.sym_size(dim).guard_int(__FILE__, __LINE__)),
                 "a multiple of the number of ranks, " + std::to_string(group.size), "pad it");
    }
  }
  at::Tensor empty() const {
    std::vector<c10::SymInt> sizes = x.sym_sizes().vec();
    const Group group(kName, process_group_name);
    if (Kind::kGrows || Kind::kDivides) {
      c10::SymInt& size = Kind::kLastDim ? sizes.back() : sizes.front();
      size = Kind::kGrows ? size * group.size : size / group.size;
    }
    return empty_result(sizes, x.options());
  }
};

template <class Kind>
at::Tensor run_collective(const Collective<Kind>& args) {
  args.check();
  const Group group(Kind::kName, args.process_group_name);
  if (Kind::kMoves) group.check_same_call("(" + describe(args.x) + ")", args.x.device());
  return Kind::run(group, args.x);
}

at::Tensor fresh(const at::Tensor& result, const at::Tensor& x) {
  return result.is_alias_of(x) ? result.clone() : result;
}

at::Tensor gathered_rows(const Group& group, const at::Tensor& x) {
  constexpr const char* kStep = "gathering rows";
  const at::Tensor all = group.start_gather(kStep, x);
  group.wait(kStep, all);
  return fresh(all, x);
}

at::Tensor summed_rows(const Group& group, const at::Tensor& x) {
  constexpr const char* kStep = "summing rows";
  return finish_sum_of_rows(group, kStep, start_sum_of_rows(group, kStep, x.contiguous()));
}

// What is small moves once, to everybody; what is large twice, but less of it.
at::Tensor summed(const Group& group, const at::Tensor& x) {
  constexpr int64_t kSmallBytes = 1 << 18;
  if (group.size == 1 || x.numel() == 0) return x.clone();
  at::Tensor flat = x.contiguous().view({-1});
  if (x.numel() * static_cast<int64_t>(x.element_size()) * group.size <= kSmallBytes) {
    const at::Tensor all = gathered_rows(group, flat);
    return sum_in_order(all.view({group.size, -1}).unbind(0)).view(x.sizes());
  }
  const int64_t padding = (group.size - flat.numel() % group.size) % group.size;
  if (padding > 0) flat = at::constant_pad_nd(flat, {0, padding});
  return gathered_rows(group, summed_rows(group, flat)).narrow(0, 0, x.numel()).clone().view(x.sizes());
}

// Column j of rank r is column r + j size: [size, ..., n] -> [..., n, size].
at::Tensor gathered_columns(const Group& group, const at::Tensor& x) {
  const at::Tensor all = gathered_rows(group, x.unsqueeze(0));
  std::vector<int64_t> sizes = x.sizes().vec();
  sizes.back() *= group.size;
  return fresh(all.movedim(0, -1).reshape(sizes), all);
}

at::Tensor taken_columns(const Group& group, const at::Tensor& x) {
  return x.slice(-1, group.rank, std::nullopt, group.size).clone(at::MemoryFormat::Contiguous);
}

struct GatherRows {
  static constexpr const char* kName = "gather_rows";
  static constexpr const char* kNode = "XformersGatherRowsBackward";
  static constexpr bool kGrows = true, kDivides = false, kLastDim = false, kMoves = true;
  static at::Tensor run(const Group& group, const at::Tensor& x) { return gathered_rows(group, x); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return sum_rows(grad, group); }
};
struct SumRows {
  static constexpr const char* kName = "sum_rows";
  static constexpr const char* kNode = "XformersSumRowsBackward";
  static constexpr bool kGrows = false, kDivides = true, kLastDim = false, kMoves = true;
  static at::Tensor run(const Group& group, const at::Tensor& x) { return summed_rows(group, x); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return gather_rows(grad, group); }
};
struct CopyToRanks {
  static constexpr const char* kName = "copy_to_ranks";
  static constexpr const char* kNode = "XformersCopyToRanksBackward";
  static constexpr bool kGrows = false, kDivides = false, kLastDim = false, kMoves = false;
  static at::Tensor run(const Group&, const at::Tensor& x) { return x.clone(at::MemoryFormat::Contiguous); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return sum_over_ranks(grad, group); }
};
struct SumOverRanks {
  static constexpr const char* kName = "sum_over_ranks";
  static constexpr const char* kNode = "XformersSumOverRanksBackward";
  static constexpr bool kGrows = false, kDivides = false, kLastDim = false, kMoves = true;
  static at::Tensor run(const Group& group, const at::Tensor& x) { return summed(group, x); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return copy_to_ranks(grad, group); }
};
struct GatherColumns {
  static constexpr const char* kName = "gather_columns";
  static constexpr const char* kNode = "XformersGatherColumnsBackward";
  static constexpr bool kGrows = true, kDivides = false, kLastDim = true, kMoves = true;
  static at::Tensor run(const Group& group, const at::Tensor& x) { return gathered_columns(group, x); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return take_columns(grad, group); }
};
struct TakeColumns {
  static constexpr const char* kName = "take_columns";
  static constexpr const char* kNode = "XformersTakeColumnsBackward";
  static constexpr bool kGrows = false, kDivides = true, kLastDim = true, kMoves = false;
  static at::Tensor run(const Group& group, const at::Tensor& x) { return taken_columns(group, x); }
  static at::Tensor adjoint(const at::Tensor& grad, const std::string& group) { return gather_columns(grad, group); }
};

template <class Kind>
struct CollectiveKept {
  static constexpr const char* kNode = Kind::kNode;
  int64_t group = 0;
  static constexpr auto members() { return std::tuple{&CollectiveKept::group}; }
  variable_list gradients(const variable_list& grads, const Wanted&) const {
    return {Kind::adjoint(grads[0], std::string(group_of_number(group)))};
  }
};

template <class Kind>
at::Tensor collective_autograd(const Collective<Kind>& args) {
  args.check();
  const auto node = record<CollectiveKept<Kind>>(args.x);
  at::Tensor out = with_history(below_autograd(args), node);
  if (node) node->keep({number_of_group(args.process_group_name)});
  return out;
}

template <class... Kinds>
struct CollectiveList {
  static void define_all(torch::Library& m) { define<Collective<Kinds>...>(m); }
  static void implement_all(torch::Library& m) { (implement<run_collective<Kinds>>(m), ...); }
  static void implement_autograd(torch::Library& m) { (implement<collective_autograd<Kinds>>(m), ...); }
};
using AllCollectives = CollectiveList<GatherRows, SumRows, CopyToRanks, SumOverRanks, GatherColumns, TakeColumns>;

at::Tensor part_named(const at::Tensor& whole, int64_t dim, std::string_view name) {
  const Group group("part_of_whole", name);
  if (whole.size(dim) % group.size != 0) {
    Check(group.operation)
        .fail("whole.size(" + std::to_string(dim) + ")", std::to_string(whole.size(dim)),
              "a multiple of the number of ranks, " + std::to_string(group.size),
              "choose features that the ranks divide");
  }
  return whole.slice(dim, group.rank, std::nullopt, group.size).clone(at::MemoryFormat::Contiguous);
}

at::Tensor whole_named(const at::Tensor& part, int64_t dim, std::string_view name) {
  const Group group("whole_of_parts", name);
  return gathered_columns(group, part.detach().movedim(dim, -1)).movedim(-1, dim).contiguous();
}

}  // namespace

at::Tensor gather_rows(const at::Tensor& x, const std::string& group) { return call(Collective<GatherRows>{x, group}); }
at::Tensor sum_rows(const at::Tensor& x, const std::string& group) { return call(Collective<SumRows>{x, group}); }
at::Tensor copy_to_ranks(const at::Tensor& x, const std::string& group) {
  return call(Collective<CopyToRanks>{x, group});
}
at::Tensor sum_over_ranks(const at::Tensor& x, const std::string& group) {
  return call(Collective<SumOverRanks>{x, group});
}
at::Tensor gather_columns(const at::Tensor& x, const std::string& group) {
  return call(Collective<GatherColumns>{x, group});
}
at::Tensor take_columns(const at::Tensor& x, const std::string& group) {
  return call(Collective<TakeColumns>{x, group});
}
at::Tensor part_of_whole(const at::Tensor& whole, int64_t dim, const std::string& group) {
  return part_named(whole, dim, group);
}
at::Tensor whole_of_parts(const at::Tensor& part, int64_t dim, const std::string& group) {
  return whole_named(part, dim, group);
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  AllCollectives::define_all(m);
  m.def("_part_of_whole(Tensor whole, int dim, str process_group_name) -> Tensor");
  m.def("_whole_of_parts(Tensor part, int dim, str process_group_name) -> Tensor");
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::ops;
  AllCollectives::implement_all(m);
  m.impl("_part_of_whole", part_named);
  m.impl("_whole_of_parts", whole_named);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) { xformers::ops::AllCollectives::implement_autograd(m); }
