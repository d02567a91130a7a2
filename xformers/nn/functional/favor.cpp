#include "xformers/nn/functional/favor.h"

#include <ATen/ops/cat.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/linalg_qr.h>
#include <ATen/ops/matmul.h>
#include <ATen/ops/ones.h>
#include <ATen/ops/randn.h>
#include <ATen/ops/where.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "xformers/ops/common/operator_node.h"

namespace xformers::nn::functional {
namespace {

constexpr int64_t kChunk = 128;  // tokens whose features exist at a time

// Tensors [batch, heads, seqlen, dim], read and written in chunks of the sequence, in fp32 (fp64).
class Tokens {
 public:
  explicit Tokens(const at::Tensor& t) : t_(t.dim() == 3 ? t.unsqueeze(1) : t.transpose(1, 2)) {}
  int64_t seqlen() const { return t_.size(2); }
  int64_t dim() const { return t_.size(3); }
  at::Tensor chunk(int64_t begin) const {
    return t_.narrow(2, begin, std::min(kChunk, seqlen() - begin)).to(ops::compute_dtype(t_));
  }
  void write(int64_t begin, const at::Tensor& values) const { t_.narrow(2, begin, values.size(2)).copy_(values); }
  at::Tensor zeros(int64_t rows, int64_t columns) const {
    return at::zeros({t_.size(0), t_.size(1), rows, columns}, t_.options().dtype(ops::compute_dtype(t_)));
  }

 private:
  at::Tensor t_;
};

template <class Fn>
void for_each_chunk(int64_t seqlen, Fn fn) {
  for (int64_t begin = 0; begin < seqlen; begin += kChunk) fn(begin);
}
template <class Fn>
void for_each_chunk_backwards(int64_t seqlen, Fn fn) {
  for (int64_t begin = (seqlen - 1) / kChunk * kChunk; begin >= 0; begin -= kChunk) fn(begin);
}

at::Tensor transposed_product(const at::Tensor& a, const at::Tensor& b) { return at::matmul(a.transpose(-1, -2), b); }
at::Tensor product_transposed(const at::Tensor& a, const at::Tensor& b) { return at::matmul(a, b.transpose(-1, -2)); }

// The features of queries and keys, and the gradients through them.
class Features {
 public:
  explicit Features(const FavorArgs& args)
      : args_(args), omega_(args.omega.to(ops::compute_dtype(args.q))), q_(args.q), k_(args.k), v_(args.v) {
    scale_ = std::pow(static_cast<double>(q_.dim()), -0.25);
    if (args.causal) return;  // a later key must not change what an earlier query sees, not even its rounding
    for_each_chunk(k_.seqlen(), [&](int64_t begin) {
      const at::Tensor largest = exponents(k_, begin).amax({2, 3}, /*keepdim=*/true);
      shift_ = shift_.defined() ? at::maximum(shift_, largest) : largest;
    });
  }

  int64_t count() const { return omega_.size(1) * (args_.paired ? 2 : 1); }
  at::Tensor queries(int64_t begin) const {
    const at::Tensor x = projected(q_.chunk(begin) * scale_);
    return (x - x.amax({3}, /*keepdim=*/true)).exp();
  }
  at::Tensor keys(int64_t begin) const {
    const at::Tensor x = exponents(k_, begin);
    return (shift_.defined() ? x - shift_ : x).exp();
  }
  // Values and a column of ones, which sums the denominator.
  at::Tensor values(int64_t begin) const {
    const at::Tensor v = v_.chunk(begin);
    return at::cat({v, at::ones({v.size(0), v.size(1), v.size(2), 1}, v.options())}, 3);
  }

  // From the gradient of the features to that of q, or of k.
  at::Tensor of_queries(const at::Tensor& features, const at::Tensor& grad) const {
    return through_omega(features * grad) * scale_;
  }
  at::Tensor of_keys(int64_t begin, const at::Tensor& features, const at::Tensor& grad) const {
    const at::Tensor weighted = features * grad, x = k_.chunk(begin) * scale_;
    return (through_omega(weighted) - x * weighted.sum(3, /*keepdim=*/true)) * scale_;
  }

 private:
  at::Tensor projected(const at::Tensor& x) const {
    const at::Tensor p = at::matmul(x, omega_);
    return args_.paired ? at::cat({p, -p}, 3) : p;
  }
  at::Tensor exponents(const Tokens& tokens, int64_t begin) const {
    const at::Tensor x = tokens.chunk(begin) * scale_;
    return projected(x) - 0.5 * x.square().sum(3, /*keepdim=*/true);
  }
  at::Tensor through_omega(const at::Tensor& weighted) const {
    if (!args_.paired) return product_transposed(weighted, omega_);
    const int64_t half = omega_.size(1);
    return product_transposed(weighted.narrow(3, 0, half) - weighted.narrow(3, half, half), omega_);
  }

  const FavorArgs& args_;
  at::Tensor omega_, shift_;
  Tokens q_, k_, v_;
  double scale_ = 1;
};

FavorArgs::Result favor_forward(const FavorArgs& args) {
  args.check();
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  auto [result, denominator_result] = args.empty();
  const Features features(args);
  const Tokens out(result), denominator(denominator_result);
  const int64_t nq = out.seqlen(), nk = Tokens(args.k).seqlen(), width = out.dim();
  at::Tensor state = out.zeros(features.count(), width + 1);
  const auto finish = [&](int64_t begin, const at::Tensor& sums) {
    const at::Tensor below = sums.narrow(3, width, 1);
    out.write(begin, sums.narrow(3, 0, width) / below);
    denominator.write(begin, below);
  };
  if (!args.causal) {
    for_each_chunk(nk,
                   [&](int64_t begin) { state += transposed_product(features.keys(begin), features.values(begin)); });
    for_each_chunk(nq, [&](int64_t begin) { finish(begin, at::matmul(features.queries(begin), state)); });
    return {result, denominator_result};
  }
  for_each_chunk(nq, [&](int64_t begin) {
    const at::Tensor q = features.queries(begin), k = features.keys(begin), v = features.values(begin);
    const at::Tensor scores = product_transposed(q, k).tril_();
    finish(begin, at::matmul(scores, v) + at::matmul(q, state));
    state += transposed_product(k, v);
  });
  return {result, denominator_result};
}

FavorBackwardArgs::Result favor_backward(const FavorBackwardArgs& args) {
  const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
  auto result = args.empty();
  const Features features(args);
  const Tokens grad_out(args.grad_out), out(args.out), denominator(args.denominator);
  const Tokens dq(std::get<0>(result)), dk(std::get<1>(result)), dv(std::get<2>(result));
  const int64_t nq = out.seqlen(), nk = dk.seqlen(), width = out.dim();
  // The gradients of numerator and denominator, side by side as values and ones are.
  const auto grad_sums = [&](int64_t begin) {
    const at::Tensor grad = grad_out.chunk(begin), below = denominator.chunk(begin);
    return at::cat({grad, -(grad * out.chunk(begin)).sum(3, /*keepdim=*/true)}, 3) / below;
  };
  at::Tensor state = out.zeros(features.count(), width + 1);
  if (!args.causal) {
    for_each_chunk(nk,
                   [&](int64_t begin) { state += transposed_product(features.keys(begin), features.values(begin)); });
  }
  for_each_chunk(nq, [&](int64_t begin) {
    const at::Tensor grad = grad_sums(begin);
    at::Tensor grad_features = product_transposed(grad, state);
    if (args.causal) {
      const at::Tensor k = features.keys(begin), v = features.values(begin);
      grad_features += at::matmul(product_transposed(grad, v).tril_(), k);
      state += transposed_product(k, v);
    }
    dq.write(begin, features.of_queries(features.queries(begin), grad_features));
  });
  // The same from the end, for keys and values: what later queries bring.
  at::Tensor later = out.zeros(features.count(), width + 1);
  if (!args.causal) {
    for_each_chunk(nq, [&](int64_t begin) { later += transposed_product(features.queries(begin), grad_sums(begin)); });
  }
  for_each_chunk_backwards(nk, [&](int64_t begin) {
    const at::Tensor k = features.keys(begin), v = features.values(begin);
    at::Tensor grad_features = product_transposed(v, later), grad_values = at::matmul(k, later);
    if (args.causal) {
      const at::Tensor q = features.queries(begin), grad = grad_sums(begin);
      grad_features += transposed_product(product_transposed(grad, v).tril_(), q);
      grad_values += transposed_product(product_transposed(q, k).tril_(), grad);
      later += transposed_product(q, grad);
    }
    dk.write(begin, features.of_keys(begin, k, grad_features));
    dv.write(begin, grad_values.narrow(3, 0, width));
  });
  return result;
}

struct FavorKept {
  static constexpr const char* kNode = "XformersFavorAttentionBackward";
  at::Tensor q, k, v, omega, out, denominator;
  bool paired = false, causal = false;
  static constexpr auto members() {
    using K = FavorKept;
    return std::tuple{&K::q, &K::k, &K::v, &K::omega, &K::out, &K::denominator, &K::paired, &K::causal};
  }
  ops::variable_list gradients(const ops::variable_list& grads, const ops::Wanted& wanted) const {
    const auto [dq, dk, dv] =
        ops::call(FavorBackwardArgs{{q, k, v, omega, paired, causal}, grads[0], out, denominator});
    return wanted.only(dq, dk, dv);
  }
};

FavorArgs::Result favor_autograd(const FavorArgs& args) {
  args.check();
  const auto node = ops::record<FavorKept>(args.q, args.k, args.v);
  auto [out, denominator] = ops::below_autograd(args);
  out = ops::with_history(out, node);
  if (node) node->keep({args.q, args.k, args.v, args.omega, out, denominator, args.paired, args.causal});
  return {out, denominator};
}

}  // namespace

void FavorArgs::check() const {
  const ops::Check check(kName);
  if (q.dim() != 3 && q.dim() != 4) {
    check.fail("q", ops::describe(q), "[batch * heads, seqlen, head_dim] or [batch, seqlen, heads, head_dim]",
               "give it 3 or 4 dimensions");
  }
  for (const auto& [name, t] : {std::pair{"q", &q}, std::pair{"k", &k}, std::pair{"v", &v}}) {
    check.floating(name, *t);
    check.dims(name, *t, q.dim(), "as many dimensions as q has");
    check.same_device(name, *t, q, "q");
    check.same_dtype(name, *t, q, "q");
    check.equal(name, t->sym_size(0), q.sym_size(0), "queries, keys and values are those of the same batch");
    if (q.dim() == 4) check.equal(name, t->sym_size(2), q.sym_size(2), "all three have the same heads");
  }
  check.equal("k.head_dim", k.sym_size(-1), q.sym_size(-1), "only values may have their own head_dim");
  check.equal("v.seqlen", v.sym_size(1), k.sym_size(1), "every key has one value");
  if (causal) check.equal("k.seqlen", k.sym_size(1), q.sym_size(1), "query i sees the keys j <= i");
  check.dims("omega", omega, 2, "[head_dim, features]");
  check.equal("omega.head_dim", omega.sym_size(0), q.sym_size(-1), "draw omega for this head_dim");
}

FavorArgs::Result FavorArgs::empty() const {
  c10::SymDimVector sizes(q.sym_sizes().begin(), q.sym_sizes().end());
  sizes.back() = v.sym_size(-1);
  at::Tensor out = at::empty_symint(sizes, q.options());
  sizes.back() = 1;
  return {out, at::empty_symint(sizes, q.options().dtype(ops::compute_dtype(q)))};
}

FavorBackwardArgs::Result FavorBackwardArgs::empty() const {
  return {ops::empty_result(q), ops::empty_result(k), ops::empty_result(v)};
}

at::Tensor favor_features(const FavorFeaturesArgs& args) {
  const at::ScalarType dtype = ops::compute_dtype(args.x);
  const at::Tensor x = args.x.to(dtype) * std::pow(static_cast<double>(args.x.size(-1)), -0.25);
  const at::Tensor squares = x.square().sum(-1, /*keepdim=*/true);
  const auto count = static_cast<double>(args.omega.size(1) * (args.paired ? 2 : 1));
  at::Tensor offset = -0.5 * squares - 0.5 * std::log(count) + args.epsilon;
  if (args.normalize) offset = offset - squares.amax({-2}, /*keepdim=*/true);
  const at::Tensor p = at::matmul(x, args.omega.to(dtype));
  return ((args.paired ? at::cat({p, -p}, -1) : p) + offset).exp();
}

at::Tensor random_orthogonal(int64_t blocks, int64_t dim, bool of_gaussian_length, std::optional<at::Device> device) {
  const auto options = at::TensorOptions().dtype(at::kFloat).device(device.value_or(at::kCPU));
  const auto [q, r] = at::linalg_qr(at::randn({blocks, dim, dim}, options));
  // With the signs of R's diagonal every orthogonal matrix is as likely as any other.
  const at::Tensor signs = r.diagonal(0, -2, -1).sign();
  const at::Tensor rows = (q * at::where(signs == 0, 1, signs).unsqueeze(-2)).transpose(-1, -2);
  if (!of_gaussian_length) return rows;
  return rows * at::randn({blocks, dim, dim}, options).norm(2, {-1}, /*keepdim=*/true);
}

at::Tensor draw_omega(int64_t head_dim, int64_t columns, bool constant_length, std::optional<at::Device> device) {
  const int64_t blocks = (head_dim + columns - 1) / columns;
  const at::Tensor rows = random_orthogonal(blocks, columns, !constant_length, device).flatten(0, 1);
  const at::Tensor omega = rows.narrow(0, 0, head_dim).contiguous();
  return constant_length ? omega * std::sqrt(static_cast<double>(head_dim)) : omega;
}

at::Tensor favor_attention(const FavorArgs& args) { return std::get<0>(ops::call(args)); }

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::nn::functional;
  xformers::ops::define<FavorArgs, FavorBackwardArgs, FavorFeaturesArgs>(m);
  m.def("_random_orthogonal(int blocks, int dim, bool of_gaussian_length, *, Device? device=None) -> Tensor",
        random_orthogonal);
  m.def("_draw_omega(int head_dim, int columns, bool constant_length, *, Device? device=None) -> Tensor", draw_omega,
        {at::Tag::nondeterministic_seeded});
}
TORCH_LIBRARY_IMPL(xformers, CompositeExplicitAutograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<favor_forward>(m);
  xformers::ops::implement<favor_backward>(m);
}
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::favor_features>(m);
}
TORCH_LIBRARY_IMPL(xformers, Autograd, m) {
  using namespace xformers::nn::functional;
  xformers::ops::implement<favor_autograd>(m);
  xformers::ops::implement_no_gradients<FavorBackwardArgs>(m);
}
