// Schemas, public functions and checks.
#include "xformers/ops/rope/rope.h"

#include <ATen/TensorOperators.h>
#include <ATen/ops/empty.h>

#include <cmath>

#include "xformers/kernels/params/rope_frequencies.h"
#include "xformers/ops/common/expanded.h"
#include "xformers/ops/rope/rope_op.h"

namespace xformers::ops {
namespace {

void check_layout(const Check& check, const char* name, const at::Tensor& t, const at::Tensor& xq) {
  if (t.dim() != xq.dim()) {
    check.fail(std::string(name) + ".ndim", std::to_string(t.dim()), std::to_string(xq.dim()) + ", that of xq",
               "all five tensors have the same layout");
  }
  if (t.sym_size(0) != 1) {
    check.fail(name, describe(t), "a first dimension of 1", "put the sequences one after the other into one batch row");
  }
  if (!has_unit_last_stride(t)) {
    check.fail(name, describe(t) + " with strides " + describe_shape(t.sym_strides()), "1 as the last stride",
               "call .contiguous() on it");
  }
  check.same_dtype(name, t, xq, "xq");
  check.same_device(name, t, xq, "xq");
}

void check_offsets(const Check& check, const char* name, const at::Tensor& t, const at::Tensor& xq,
                   const char* layout) {
  check.dims(name, t, 1, layout);
  check.same_device(name, t, xq, "xq");
  if (t.scalar_type() == at::kInt) return;
  check.fail(std::string(name) + ".dtype", describe_dtype(t.scalar_type()), "int32", "convert it with .int()");
}

void check_positions(const Check& check, const char* name, const OptionalTensor& t, const c10::SymInt& count,
                     const at::Tensor& xq, const char* fix) {
  if (!t) return;
  check.shape(name, *t, {count}, fix);
  check.same_device(name, *t, xq, "xq");
  if (!c10::isIntegralType(t->scalar_type(), /*includeBool=*/false)) {
    check.fail(std::string(name) + ".dtype", describe_dtype(t->scalar_type()), "integers", "convert it with .int()");
  }
}

// [1, rows, (groups,) heads, head_dim] like xq but for rows and heads.
void check_like_query(const Check& check, const char* name, const at::Tensor& t, const at::Tensor& xq,
                      const c10::SymInt& rows, const c10::SymInt& heads, const char* fix) {
  c10::SymDimVector expected(xq.sym_sizes().begin(), xq.sym_sizes().end());
  expected[1] = rows;
  expected[expected.size() - 2] = heads;
  check.shape(name, t, expected, fix);
}

}  // namespace

bool has_expanded_heads(const at::Tensor& t) { return t.sym_size(-2) > 1 && t.sym_stride(-2) == 0; }

void RopePadded::check() const {
  const RopePadded& t = *this;
  const Check check(kName);
  check.floating("xq", t.xq);
  if (t.xq.dim() != 4 && t.xq.dim() != 5) {
    check.fail("xq", describe(t.xq), "[1, queries, heads, head_dim] or [1, queries, groups, heads, head_dim]",
               "give it 4 or 5 dimensions");
  }
  check_layout(check, "xq", t.xq, t.xq);
  check_layout(check, "xk", t.xk, t.xq);
  check_layout(check, "xv", t.xv, t.xq);
  check_layout(check, "cache_k", t.cache_k, t.xq);
  check_layout(check, "cache_v", t.cache_v, t.xq);
  if (t.xq.sym_size(-1) % 2 != 0) {
    check.fail("head_dim", describe(t.xq), "an even last dimension",
               "elements are turned in pairs; pad the heads by one");
  }
  const c10::SymInt queries = t.xq.sym_size(1), kv_heads = t.xk.sym_size(-2);
  check_like_query(check, "xk", t.xk, t.xq, queries, kv_heads, "keys are those of the queries' tokens");
  check_like_query(check, "xv", t.xv, t.xq, queries, kv_heads, "values have the shape of the keys");
  const bool expanded = has_expanded_heads(t.xk);
  if (expanded != has_expanded_heads(t.xv)) {
    check.fail(
        "xv",
        "with strides " + describe_shape(t.xv.sym_strides()) + " beside xk with " + describe_shape(t.xk.sym_strides()),
        "both with expanded heads or neither", "expand both, or make both contiguous");
  }
  for (const auto& [name, cache] : {std::pair{"cache_k", &t.cache_k}, std::pair{"cache_v", &t.cache_v}}) {
    const bool any_expansion = expanded && cache->sym_stride(-2) == 0;
    const c10::SymInt heads = any_expansion ? cache->sym_size(-2) : expanded ? c10::SymInt(1) : kv_heads;
    check_like_query(
        check, name, *cache, t.xq, t.cache_k.sym_size(1), heads,
        expanded ? "keys whose heads are expanded need a cache of one head" : "the cache has the heads of the keys");
  }
  check_offsets(check, "q_seqstart", t.q_seqstart, t.xq, "int32 [batch + 1]");
  check_offsets(check, "k_seqstart", t.k_seqstart, t.xq, "int32 [batch + 1]");
  check_offsets(check, "k_seqlen", t.k_seqlen, t.xq, "int32 [batch]");
  const c10::SymInt batch = t.k_seqlen.sym_size(0);
  check.shape("q_seqstart", t.q_seqstart, {batch + 1}, "one offset per sequence and the end of the last");
  if (t.k_seqstart.sym_size(0) < batch) {
    check.fail("k_seqstart", describe(t.k_seqstart), "one offset per sequence", "pass that of the bias");
  }
  if (t.first_seqpos && t.seqpos) {
    check.fail("seqpos", "given beside first_seqpos", "one of them", "positions are either shifted or given");
  }
  check_positions(check, "first_seqpos", t.first_seqpos, batch, t.xq, "one number per sequence");
  check_positions(check, "seqpos", t.seqpos, queries, t.xq, "one position per query");
  if (internal_dtype != "" && internal_dtype != "f32" && internal_dtype != "f64") {
    check.fail("internal_dtype", std::string("'").append(internal_dtype) + "'", "'', 'f32' or 'f64'",
               "name one of these");
  }
}

void RopePaddedOut::check() const {
  RopePadded::check();
  const Check check(RopePadded::kName);
  check_layout(check, "out_q", out_q, xq);
  check.shape("out_q", out_q, xq.sym_sizes(), "it takes the rotated queries");
  check.no_overlap("out_q", out_q);
}

void Rotary::check() const {
  const Check check(kName);
  check.floating("x", x);
  if (x.dim() < 2) check.fail("x", describe(x), "[..., seqlen, head_dim]", "give it at least two dimensions");
  if (x.sym_size(-1) % 2 != 0) {
    check.fail("head_dim", describe(x), "an even last dimension", "elements are turned in pairs; pad the heads by one");
  }
}

at::Tensor rope_padded(const at::Tensor& xq, const at::Tensor& xk, const at::Tensor& xv, const at::Tensor& cache_k,
                       const at::Tensor& cache_v, const at::Tensor& q_seqstart, const at::Tensor& k_seqstart,
                       const at::Tensor& k_seqlen, const RopePaddedOptions& options) {
  const RopeScaling& s = options.scaling;
  return call(RopePadded{xq, xk, xv, cache_k, cache_v, q_seqstart, k_seqstart, k_seqlen, s.theta, s.linear_scale,
                         s.dynamic, s.old_context_len, s.scale_factor, s.low_freq_factor, s.high_freq_factor,
                         options.first_seqpos, options.seqpos, options.adjacents, options.internal_dtype});
}

at::Tensor rotary(const at::Tensor& x, double theta, bool adjacents) { return call(Rotary{x, theta, adjacents}); }

at::Tensor rotary(const at::Tensor& x, const RopeScaling& s, bool adjacents) {
  return call(Rotary{x, s.theta, adjacents, /*inverse=*/false, s.linear_scale, s.dynamic, s.old_context_len,
                     s.scale_factor, s.low_freq_factor, s.high_freq_factor});
}

RopeScaling to_rope_scaling(int64_t head_dim, double theta, const RotaryScaling& s) {
  const Check check("rotary_embedding");
  if (!(theta > 0)) check.fail("theta", std::to_string(theta), "a positive number", "10000 is the usual one");
  if (s.kind == "none") return {.theta = theta};
  if (!(s.factor >= 1)) {
    check.fail("the scaling's factor", std::to_string(s.factor), "at least 1", "it is the new length over the old");
  }
  if (s.kind == "linear") return {.theta = theta, .linear_scale = s.factor};
  if (s.kind == "ntk") {
    if (head_dim <= 2) check.fail("head_dim", std::to_string(head_dim), "more than 2 for 'ntk'", "choose 'linear'");
    const double dim = static_cast<double>(head_dim);
    return {.theta = theta * std::pow(s.factor, dim / (dim - 2))};
  }
  if (s.kind != "yarn" && s.kind != "llama3") {
    check.fail("scaling", "'" + s.kind + "'", "'linear', 'ntk', 'yarn' or 'llama3'", "leave it out for none");
  }
  const double high = s.high_freq_factor.value_or(s.kind == "yarn" ? 32 : 4);
  if (!(s.original_seq_len > 0) || !(s.low_freq_factor > 0) || !(high > s.low_freq_factor)) {
    check.fail("the scaling",
               "original_seq_len " + std::to_string(s.original_seq_len) + ", low_freq_factor " +
                   std::to_string(s.low_freq_factor) + ", high_freq_factor " + std::to_string(high),
               "positive numbers, the last larger than the one before", "pass those of the model's config");
  }
  return {.theta = theta,
          .dynamic = true,
          .old_context_len = s.original_seq_len,
          .scale_factor = s.factor,
          .low_freq_factor = s.low_freq_factor,
          .high_freq_factor = high};
}

double rotary_magnitude(const RotaryScaling& s) { return s.kind == "yarn" ? 0.1 * std::log(s.factor) + 1 : 1; }

at::Tensor rotary_embedding(const at::Tensor& x, double theta, const RotaryScaling& scaling) {
  const at::Tensor turned = rotary(x, to_rope_scaling(x.size(-1), theta, scaling));
  const double magnitude = rotary_magnitude(scaling);
  return magnitude == 1 ? turned : turned * magnitude;
}

at::Tensor rotary_frequencies(int64_t head_dim, double theta, const RotaryScaling& scaling) {
  const std::vector<double> frequencies = rope_frequencies(head_dim, to_rope_scaling(head_dim, theta, scaling));
  at::Tensor result = at::empty({head_dim / 2}, at::TensorOptions().dtype(at::kDouble).device(at::kCPU));
  std::copy(frequencies.begin(), frequencies.end(), result.mutable_data_ptr<double>());
  return result;
}

namespace {

RotaryScaling to_scaling(std::string_view kind, double factor, double original_seq_len, double low,
                         std::optional<double> high) {
  return {std::string(kind), factor, original_seq_len, low, high};
}

at::Tensor rotary_embedding_by_name(const at::Tensor& x, double theta, std::string_view kind, double factor,
                                    double original_seq_len, double low, std::optional<double> high) {
  return rotary_embedding(x, theta, to_scaling(kind, factor, original_seq_len, low, high));
}

at::Tensor rotary_frequencies_by_name(int64_t head_dim, double theta, std::string_view kind, double factor,
                                      double original_seq_len, double low, std::optional<double> high) {
  return rotary_frequencies(head_dim, theta, to_scaling(kind, factor, original_seq_len, low, high));
}

}  // namespace

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<RopePadded, RopePaddedOut, Rotary>(m);
  const std::string scaling =
      "str scaling='none', float factor=1.0, float original_seq_len=8192.0, float low_freq_factor=1.0, "
      "float? high_freq_factor=None) -> Tensor";
  m.def(("rotary_embedding(Tensor x, float theta=10000.0, " + scaling).c_str(), {at::Tag::pt2_compliant_tag});
  m.def(("rotary_frequencies(int head_dim, float theta=10000.0, " + scaling).c_str(), rotary_frequencies_by_name);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  m.impl("rotary_embedding", xformers::ops::rotary_embedding_by_name);
}
