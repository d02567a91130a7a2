#include "xformers/nn/functional/nystrom.h"

#include <ATen/autocast_mode.h>
#include <ATen/ops/arange.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/conv2d.h>
#include <ATen/ops/eye.h>
#include <ATen/ops/linalg_pinv.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/softmax.h>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {
namespace {

// x [batch, seqlen, ...] -> the sums of `count` segments of its sequence, those at the end one longer where seqlen is
// no multiple.
at::Tensor segment_sums(const at::Tensor& x, int64_t count) {
  const c10::SymInt seqlen = x.sym_size(1), length = seqlen / count, longer = seqlen % count, shorter = count - longer;
  const auto sums = [&](const at::Tensor& part, const c10::SymInt& segments, const c10::SymInt& tokens) {
    c10::SymDimVector sizes(part.sym_sizes().begin(), part.sym_sizes().end());
    sizes[1] = segments;
    sizes.insert(sizes.begin() + 2, tokens);
    return part.reshape_symint(sizes).sum(2);
  };
  if (longer == 0) return sums(x, count, length);
  const c10::SymInt cut = shorter * length;
  return at::cat({sums(x.narrow_symint(1, 0, cut), shorter, length),
                  sums(x.narrow_symint(1, cut, seqlen - cut), longer, length + 1)},
                 1);
}

// int64 [count]: where the segments end.
at::Tensor segment_ends(const c10::SymInt& seqlen, int64_t count, const at::TensorOptions& options) {
  const at::Tensor index = at::arange(1, count + 1, options.dtype(at::kLong));
  const c10::SymInt shorter = count - seqlen % count;
  return index * c10::Scalar(seqlen / count) + (index - c10::Scalar(shorter)).clamp_min(0);
}

// The means of the segments of t [batch, seqlen, heads, dim]; present [batch, seqlen, heads or 1, 1]: 1 where there is
// a token, whose absence has put zeros into t.
at::Tensor means(const at::Tensor& t, const at::Tensor& present, int64_t count) {
  const at::Tensor sums = segment_sums(t, count);
  if (present.defined()) return sums / segment_sums(present, count).clamp_min(1);
  const at::Tensor ones = t.new_ones_symint({1, t.sym_size(1), 1, 1});
  return sums / segment_sums(ones, count);
}

// v [batch, seqlen, heads, dim] with each head's own kernel along the sequence, in its layout.
at::Tensor convolved(const ops::Check& check, const at::Tensor& weight, const Heads& heads) {
  const c10::SymInt num_heads = weight.sym_size(0);
  const int64_t kernel = weight.size(2);
  at::Tensor image = heads.v.transpose(1, 2);  // [batch, heads, seqlen, dim]
  if (heads.folded)
    image = image.reshape_symint({image.sym_size(0) / num_heads, num_heads, image.sym_size(2), image.sym_size(3)});
  check.equal("skip_weight.heads", num_heads, image.sym_size(1), "it has one kernel per head");
  if (kernel % 2 == 0) check.fail("conv_kernel_size", std::to_string(kernel), "an odd number", "add or take one");
  const at::Tensor out = at::conv2d(image, weight, {}, 1, {kernel / 2, 0}, 1, num_heads.guard_int(__FILE__, __LINE__));
  return out.reshape_symint({heads.v.sym_size(0), heads.v.sym_size(2), heads.v.sym_size(1), heads.v.sym_size(3)})
      .transpose(1, 2);
}

}  // namespace

at::Tensor iterative_pinv(const IterativePinvArgs& args) {
  const at::Tensor& a = args.a;
  const ops::Check check(args.kName);
  if (a.dim() < 2 || a.sym_size(-1) != a.sym_size(-2)) {
    check.fail("a", ops::describe(a), "square matrices, [..., n, n]", "invert a product of it with its transpose");
  }
  const at::Tensor columns = a.sum(-2, /*keepdim=*/true);
  const at::Tensor largest = args.pinverse_original_init ? columns.max() : columns.amax({-1}, /*keepdim=*/true);
  const at::Tensor identity = at::eye_symint(a.sym_size(-1), a.options());
  at::Tensor v = a.transpose(-1, -2) / largest;
  for (int64_t i = 0; i < args.n_iter; ++i) {
    const at::Tensor av = at::matmul(a, v);
    const at::Tensor inner = 15 * identity - at::matmul(av, 7 * identity - av);
    v = at::matmul(0.25 * v, 13 * identity - at::matmul(av, inner));
  }
  return v;
}

at::Tensor nystrom_attention(const NystromArgs& args) {
  const ops::Check check(args.kName);
  Heads heads(check, args.q, args.k, args.v);
  const int64_t count = args.num_landmarks;
  if (count < 1) check.fail("num_landmarks", std::to_string(count), "at least 1", "64 is usual");
  check.equal("k.seqlen", heads.k.sym_size(1), heads.q.sym_size(1), "landmarks of both are taken at the same places");
  const c10::SymInt seqlen = heads.q.sym_size(1);
  const auto finish = [&](const at::Tensor& out) {
    const at::Tensor sum =
        args.skip_weight ? out + convolved(check, *args.skip_weight, heads).to(out.scalar_type()) : out;
    return drop(heads.restore(sum), args.p);
  };
  at::Tensor present;
  OptionalTensor bias;
  if (args.key_padding_mask) {
    const at::Tensor padding = padding_of_heads(check, *args.key_padding_mask, heads);
    heads.q = without_padding(heads.q, padding);
    heads.k = without_padding(heads.k, padding);
    heads.v = without_padding(heads.v, padding);
    const at::Tensor visible = padding.scalar_type() == at::kBool ? padding : padding.isinf().logical_not();
    present = visible.permute({0, 3, 1, 2}).to(heads.q.scalar_type());
    bias = padding.scalar_type() == at::kBool ? padding : padding.to(heads.q.scalar_type());
  }
  if (seqlen <= count) {
    if (bias) bias = bias->expand_symint({heads.q.sym_size(0), heads.q.sym_size(2), seqlen, seqlen});
    return finish(
        attend_biased(heads.q, heads.k, heads.v, bias, causal_window(args.causal), 0, std::nullopt, std::nullopt));
  }
  if (args.causal) {
    const at::Tensor ends = segment_ends(seqlen, count, heads.q.options()).unsqueeze(1);
    const at::Tensor before = at::arange(c10::Scalar(seqlen), ends.options()) < ends;  // [count, seqlen]
    bias = !bias ? before
           : bias->scalar_type() == at::kBool
               ? bias->logical_and(before)
               : bias->masked_fill(before.logical_not(), -std::numeric_limits<double>::infinity());
  }
  if (bias) bias = bias->expand_symint({heads.q.sym_size(0), heads.q.sym_size(2), count, seqlen});

  const auto given = [&](const char* name, const OptionalTensor& landmarks, const at::Tensor& of) {
    if (!landmarks) return means(of, present, count);
    const at::Tensor rows = heads.folded ? landmarks->unsqueeze(2) : *landmarks;
    check.shape(name, rows, {of.sym_size(0), count, of.sym_size(2), of.sym_size(3)}, "pool to num_landmarks rows");
    return rows;
  };
  const at::Tensor q_landmarks = given("q_landmarks", args.q_landmarks, heads.q);
  const at::Tensor k_landmarks = given("k_landmarks", args.k_landmarks, heads.k);

  const at::Tensor values =
      attend_biased(q_landmarks, heads.k, heads.v, bias, /*window=*/{}, 0, std::nullopt, std::nullopt);
  at::Tensor mixed;  // [batch, count, heads, dim]
  {
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const at::ScalarType dtype = ops::compute_dtype(heads.q);
    const auto batched = [&](const at::Tensor& t) { return t.transpose(1, 2).to(dtype); };
    const double scale = 1 / std::sqrt(static_cast<double>(heads.q.size(3)));
    const at::Tensor kernel =
        at::softmax(at::matmul(batched(q_landmarks) * scale, batched(k_landmarks).transpose(-1, -2)), -1);
    const at::Tensor inverse =
        args.use_razavi_pinverse
            ? iterative_pinv(
                  {.a = kernel, .n_iter = args.inv_iterations, .pinverse_original_init = args.pinverse_original_init})
            : at::linalg_pinv(kernel, /*rcond=*/1e-15);
    mixed = at::matmul(inverse, batched(values)).to(values.scalar_type()).transpose(1, 2);
  }
  return finish(attend(heads.q, k_landmarks.to(heads.q.scalar_type()), mixed.to(heads.q.scalar_type())));
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<NystromArgs, IterativePinvArgs>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<nystrom_attention>(m);
  xformers::ops::implement<iterative_pinv>(m);
}
