#include "xformers/ops/attention/lse_formats.h"

#include <ATen/ATen.h>
#include <torch/library.h>

#include <algorithm>
#include <limits>
#include <numeric>
#include <vector>

#include "xformers/ops/common/check.h"

namespace xformers::ops {
namespace {

const Check kCheck("lse");
constexpr double kInfinity = std::numeric_limits<double>::infinity();

int64_t total(at::IntArrayRef seqlens) { return std::accumulate(seqlens.begin(), seqlens.end(), int64_t{0}); }
int64_t longest(at::IntArrayRef seqlens) {
  return seqlens.empty() ? 0 : *std::max_element(seqlens.begin(), seqlens.end());
}
c10::SymInt round_up_32(const c10::SymInt& x) { return (x + 31) / 32 * 32; }

// [n + 1] offsets on the device of lse. While a call is traced, new tensors have no memory: these numbers are written
// outside of the trace, which then takes them as a constant.
at::Tensor offsets(at::IntArrayRef seqlens, const at::Tensor& lse) {
  std::vector<int64_t> sums(seqlens.size() + 1);
  std::partial_sum(seqlens.begin(), seqlens.end(), sums.begin() + 1);
  const auto constant = [&] {
    using c10::DispatchKey;
    const at::AutoDispatchBelowADInplaceOrView below_autograd;
    const c10::impl::ExcludeDispatchKeyGuard untraced(
        c10::DispatchKeySet({DispatchKey::Python, DispatchKey::PythonTLSSnapshot,
                             DispatchKey::FuncTorchDynamicLayerFrontMode, DispatchKey::FuncTorchDynamicLayerBackMode}));
    return at::tensor(sums, at::kLong);
  };
  return at::lift_fresh(constant()).to(lse.device());
}

struct Fit {
  bool packed, padded;
};

// Which formats an lse that came from outside may have.
Fit fit_of(const at::Tensor& lse, const at::Tensor& query, at::IntArrayRef seqlens, c10::string_view bias_type) {
  const auto refuse = [&](const std::string& expected) {
    kCheck.fail(
        "lse", describe_shape(lse.sym_sizes()),
        expected + ", for a query " + describe_shape(query.sym_sizes()) + " and a bias " + std::string(bias_type),
        "pass the lse that the forward returned for the same query and bias");
  };
  const bool one_head = query.dim() == 3;  // [batch, seqlen, head_dim] has an lse [batch, 1, seqlen]
  const int64_t num_heads_dims = one_head ? 1 : query.dim() - 3;
  if (lse.dim() != num_heads_dims + 2) refuse("one with " + std::to_string(num_heads_dims + 2) + " dimensions");
  for (int64_t dim = 0; dim < num_heads_dims; ++dim) {
    if (lse.sym_size(dim + 1) != (one_head ? c10::SymInt(1) : query.sym_size(dim + 2))) {
      refuse("one with the query's heads in the middle");
    }
  }
  const auto last = lse.sym_size(-1);
  const Fit fit{.packed = lse.sym_size(0) == query.sym_size(0) && last >= query.sym_size(1),
                .padded = !seqlens.empty() && lse.sym_size(0) == static_cast<int64_t>(seqlens.size()) &&
                          last >= longest(seqlens)};
  if (!fit.packed && !fit.padded) {
    refuse(seqlens.empty() ? "[batch, heads, seqlen_q or more]"
                           : "[1, heads, total queries] (packed) or [sequences, heads, longest or more] (padded)");
  }
  return fit;
}

at::Tensor lse_in_dtype(const at::Tensor& lse, std::optional<at::ScalarType> dtype) {
  return dtype && lse.scalar_type() != *dtype ? lse.to(*dtype) : lse;
}

}  // namespace

at::Tensor pad_lse(const at::Tensor& lse, const at::Tensor& cu_seqlens_q, const c10::SymInt& width) {
  const at::Tensor column = at::arange(at::Scalar(width), lse.options().dtype(at::kLong));
  const at::Tensor begin = cu_seqlens_q.slice(0, 0, -1).unsqueeze(1), end = cu_seqlens_q.slice(0, 1).unsqueeze(1);
  // Places without a query read one more column, of +inf.
  const at::Tensor query = begin + column;
  const at::Tensor place = at::where(query < end, query, at::Scalar(lse.sym_size(-1)));
  const at::Tensor filled = at::constant_pad_nd(lse.squeeze(0), {0, 1}, kInfinity);
  const at::Tensor padded = filled.index_select(-1, place.flatten());
  return padded.unflatten_symint(-1, {place.sym_size(0), width}).movedim(-2, 0).contiguous();
}

at::Tensor unpad_lse(const at::Tensor& lse, const at::Tensor& cu_seqlens_q, const c10::SymInt& total) {
  const at::Tensor query = at::arange(at::Scalar(total), lse.options().dtype(at::kLong));
  const at::Tensor ends = cu_seqlens_q.slice(0, 1).contiguous().to(at::kLong);
  const at::Tensor sequence = at::searchsorted(ends, query, /*out_int32=*/false, /*right=*/true);
  const at::Tensor column = query - cu_seqlens_q.index_select(0, sequence);
  return lse.movedim(0, -2).flatten(-2).index_select(-1, sequence * at::Scalar(lse.sym_size(-1)) + column).unsqueeze(0);
}

at::Tensor lse_to_format(const at::Tensor& given, c10::string_view format, at::IntArrayRef seqlens_q,
                         std::optional<at::ScalarType> dtype) {
  const at::Tensor lse = lse_in_dtype(given, dtype);
  if (format == "packed") return lse;
  if (format != "padded" && format != "cutlass") {
    kCheck.fail("format", std::string(format), "packed, padded or cutlass", "name one of these");
  }
  const bool cutlass = format == "cutlass";
  if (!seqlens_q.empty()) {
    const int64_t queries = total(seqlens_q), width = longest(seqlens_q);
    if (lse.dim() < 2 || lse.sym_size(0) != 1 || lse.sym_size(-1) < queries) {
      kCheck.fail("the packed lse", describe(lse), "[1, heads, " + std::to_string(queries) + "]",
                  "pass what attention returned for these sequences");
    }
    return pad_lse(lse, offsets(seqlens_q, lse), cutlass ? (width + 31) / 32 * 32 : width);
  }
  const c10::SymInt width = lse.sym_size(-1);
  return cutlass ? at::constant_pad_nd_symint(lse, {0, round_up_32(width) - width}, kInfinity) : lse;
}

at::Tensor lse_from_format(const at::Tensor& lse, const at::Tensor& query, at::IntArrayRef seqlens_q,
                           c10::string_view bias_type) {
  const Fit fit = fit_of(lse, query, seqlens_q, bias_type);
  const at::ScalarType dtype = compute_dtype(query);
  if (!fit.packed) {
    if (query.sym_size(1) != total(seqlens_q)) {
      kCheck.fail("the sum of the sequence lengths", std::to_string(total(seqlens_q)),
                  c10::str(query.sym_size(1)) + ", the seqlen of the query", "pass the lengths of the bias");
    }
    return unpad_lse(lse_in_dtype(lse, dtype), offsets(seqlens_q, lse), query.sym_size(1));
  }
  const at::Tensor rows = lse_in_dtype(lse, dtype);
  return rows.sym_size(-1) == query.sym_size(1) ? rows : rows.narrow_symint(-1, 0, query.sym_size(1));
}

std::string lse_format(const at::Tensor& lse, const at::Tensor& query, at::IntArrayRef seqlens_q,
                       c10::string_view bias_type) {
  const Fit fit = fit_of(lse, query, seqlens_q, bias_type);
  if (seqlens_q.size() <= 1) return "any";
  return fit.packed ? "packed" : "padded";
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  m.def("lse_to_format(Tensor(a) lse, str format, int[] seqlens_q=[], ScalarType? dtype=None) -> Tensor(a)",
        xformers::ops::lse_to_format);
  m.def("lse_from_format(Tensor(a) lse, Tensor query, int[] seqlens_q=[], str bias_type=\"None\") -> Tensor(a)",
        xformers::ops::lse_from_format);
  m.def("lse_format(Tensor lse, Tensor query, int[] seqlens_q=[], str bias_type=\"None\") -> str",
        xformers::ops::lse_format);
}
