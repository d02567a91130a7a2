#include "xformers/nn/functional/orthoformer.h"

#include <ATen/ops/arange.h>
#include <ATen/ops/bmm.h>
#include <ATen/ops/cat.h>
#include <ATen/ops/maximum.h>
#include <ATen/ops/rand.h>
#include <ATen/ops/randint.h>
#include <ATen/ops/zeros.h>

#include <cmath>

#include "xformers/nn/functional/attend.h"

namespace xformers::nn::functional {
namespace {

constexpr int64_t kClusteringSteps = 6;

// x [n, rows, dim], index [n, m] -> [n, m, dim]
at::Tensor rows_of(const at::Tensor& x, const at::Tensor& index) {
  return x.gather(1, index.unsqueeze(2).expand_symint({-1, -1, x.sym_size(2)}));
}

// With replacement: [n, count, dim]
at::Tensor drawn(const at::Tensor& x, int64_t count) {
  const at::Tensor places = at::rand_symint({x.sym_size(0), count}, x.options().dtype(at::kDouble));
  const at::Tensor index = (places * c10::Scalar(x.sym_size(1))).to(at::kLong);
  return rows_of(x, index);
}

at::Tensor unit(const at::Tensor& x) { return x / x.norm(2, {-1}, /*keepdim=*/true).clamp_min(1e-12); }

// One at random; then, again and again, the row whose largest |cosine| to those chosen is smallest. In sequence order.
at::Tensor most_orthogonal(const at::Tensor& x, int64_t count) {
  const at::Tensor directions = unit(x);
  at::Tensor next =
      (at::rand_symint({x.sym_size(0), 1}, x.options().dtype(at::kDouble)) * c10::Scalar(x.sym_size(1))).to(at::kLong);
  std::vector<at::Tensor> chosen{next};
  at::Tensor largest = at::zeros_symint({x.sym_size(0), x.sym_size(1)}, x.options());
  for (int64_t i = 1; i < count; ++i) {
    const at::Tensor cosines = at::bmm(directions, rows_of(directions, next).transpose(1, 2)).squeeze(2);
    largest = at::maximum(largest, cosines.abs()).scatter(1, next, std::numeric_limits<double>::infinity());
    next = largest.argmin(1, /*keepdim=*/true);
    chosen.push_back(next);
  }
  return rows_of(x, std::get<0>(at::cat(chosen, 1).sort(1)));
}

// k-means from random rows. Spherical: by cosine, and centres of length 1.
at::Tensor cluster_centres(const at::Tensor& rows, int64_t count, bool spherical) {
  const at::Tensor x = spherical ? unit(rows) : rows;
  const at::Tensor places = at::rand_symint({x.sym_size(0), x.sym_size(1)}, x.options()).argsort(int64_t{1});
  at::Tensor centres = rows_of(x, places.narrow(1, 0, count));
  const at::Tensor clusters = at::arange(count, x.options().dtype(at::kLong)).unsqueeze(1);
  for (int64_t step = 0; step < kClusteringSteps; ++step) {
    at::Tensor nearness = at::bmm(x, centres.transpose(1, 2));  // [n, rows, count]
    if (!spherical) nearness = nearness - 0.5 * centres.square().sum(-1).unsqueeze(1);
    const at::Tensor nearest = nearness.argmax(2);
    // Sums as a product: the same bits every time, which scattered ones have not on a GPU.
    const at::Tensor members = nearest.unsqueeze(1).eq(clusters).to(x.scalar_type());  // [n, count, rows]
    const at::Tensor sums = at::bmm(members, x), counts = members.sum(2, /*keepdim=*/true);
    centres = at::where(counts > 0, sums / counts.clamp_min(1), centres);  // an empty cluster stays where it is
    if (spherical) centres = unit(centres);
  }
  return centres;
}

}  // namespace

at::Tensor orthoformer_attention(const OrthoformerArgs& args) {
  const ops::Check check(args.kName);
  const Heads heads(check, args.q, args.k, args.v);
  const std::string_view how = args.landmark_selection;
  if (how != "orthogonal" && how != "kmeans" && how != "kmeans_spherical" && how != "random") {
    check.fail("landmark_selection", std::string(how), "orthogonal, kmeans, kmeans_spherical or random",
               "choose one of these");
  }
  const int64_t count = args.num_landmarks;
  if (count < 1) check.fail("num_landmarks", std::to_string(count), "at least 1", "32 is usual");
  if (!(args.subsample_fraction > 0 && args.subsample_fraction <= 1)) {
    check.fail("subsample_fraction", std::to_string(args.subsample_fraction), "above 0, at most 1",
               "1 takes all tokens");
  }
  if (heads.q.sym_size(1) <= count) return attend(check, heads, {}, args.p);

  at::Tensor landmarks;  // [batch, count, heads, head_dim]
  {
    const at::NoGradGuard no_grad;
    const c10::impl::ExcludeDispatchKeyGuard no_autocast(c10::autocast_dispatch_keyset);
    const c10::SymInt batch = heads.q.sym_size(0), num_heads = heads.q.sym_size(2), dim = heads.q.sym_size(3);
    const auto folded = [&](const at::Tensor& t) {  // [batch * heads, seqlen, dim], for arithmetic
      return t.transpose(1, 2).reshape_symint({batch * num_heads, t.sym_size(1), dim}).to(ops::compute_dtype(t));
    };
    at::Tensor candidates = folded(heads.q.detach());
    if (args.subsample_fraction < 1) {
      const double rows = args.subsample_fraction * static_cast<double>(heads.q.size(1));
      const int64_t kept = std::max(count, static_cast<int64_t>(rows));
      const at::Tensor order =
          at::rand_symint({candidates.sym_size(0), candidates.sym_size(1)}, candidates.options()).argsort(int64_t{1});
      candidates = rows_of(candidates, std::get<0>(order.narrow(1, 0, kept).sort(1)));
    }
    if (how == "random") {
      const int64_t of_keys = count / 2;
      landmarks = drawn(candidates, count - of_keys);
      if (of_keys > 0) landmarks = at::cat({landmarks, drawn(folded(heads.k.detach()), of_keys)}, 1);
    } else {
      landmarks = how == "orthogonal" ? most_orthogonal(candidates, count)
                                      : cluster_centres(candidates, count, how == "kmeans_spherical");
    }
    landmarks = landmarks.view_symint({batch, num_heads, count, dim}).transpose(1, 2).to(heads.q.scalar_type());
  }
  const at::Tensor values = attend(landmarks, heads.k, heads.v, args.p);
  return heads.restore(attend(heads.q, landmarks, values.to(heads.q.scalar_type()), args.p));
}

}  // namespace xformers::nn::functional

TORCH_LIBRARY_FRAGMENT(xformers, m) { xformers::ops::define<xformers::nn::functional::OrthoformerArgs>(m); }
TORCH_LIBRARY_IMPL(xformers, CompositeImplicitAutograd, m) {
  xformers::ops::implement<xformers::nn::functional::orthoformer_attention>(m);
}
