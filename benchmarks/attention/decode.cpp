#include "benchmarks/attention/decode.h"

#include <ATen/ATen.h>
#include <ATen/core/grad_mode.h>

#include <algorithm>
#include <memory>
#include <random>

#include "benchmarks/common/bandwidth.h"
#include "xformers/ops/attention/attention_op.h"

namespace xformers::bench {
namespace {

using at::Tensor;
using Tensors = std::vector<Tensor>;
using testing::AttentionCase;

constexpr int64_t kPaddedBytes = int64_t{600} << 20;  // the largest padded batch that SDPA is given

// A cache of rows [1, rows, kv heads, row size] of which only those in use are written: the others cost no memory.
struct Cache {
  Tensor k, v, k_scale_shift, v_scale_shift, page_table;
  std::vector<int64_t> starts;  // of each sequence's slot in a padded cache
};

int64_t pages_of(int64_t keys, int64_t page_size) { return (keys + page_size - 1) / page_size; }

Tensor random_page_table(const AttentionCase& c) {
  const int64_t sequences = static_cast<int64_t>(c.used_k.size());
  int64_t most = 0, total = 0;
  for (int32_t keys : c.used_k)
    most = std::max(most, pages_of(keys, c.page_size)), total += pages_of(keys, c.page_size);
  std::vector<int32_t> order(static_cast<size_t>(total));
  for (size_t i = 0; i < order.size(); ++i) order[i] = static_cast<int32_t>(i);
  std::shuffle(order.begin(), order.end(), std::mt19937(3));
  Tensor table = at::zeros({sequences, most}, at::kInt);
  size_t next = 0;
  for (int64_t s = 0; s < sequences; ++s) {
    for (int64_t page = 0; page < pages_of(c.used_k[s], c.page_size); ++page)
      table.data_ptr<int32_t>()[s * most + page] = order[next++];
  }
  return table;
}

// Writes random rows where keys are in use: a few thousand of them, over and over.
void fill_used(Tensor& cache, const AttentionCase& c, const std::vector<int64_t>& starts, const Tensor& rows) {
  const auto copy_rows = [&](int64_t begin, int64_t count) {
    for (int64_t done = 0; done < count; done += rows.size(0)) {
      const int64_t part = std::min(rows.size(0), count - done);
      cache[0].slice(0, begin + done, begin + done + part).copy_(rows.slice(0, 0, part));
    }
  };
  if (c.paged()) return copy_rows(0, cache.size(1));
  for (size_t s = 0; s < starts.size(); ++s) copy_rows(starts[s], c.used_k[s]);
}

Tensor random_rows(const AttentionCase& c) {
  constexpr int64_t kRows = 4096;
  const int64_t heads = *c.kv_heads;
  if (c.kv_format == KvFormat::kPlain) return at::randn({kRows, heads, c.head_dim}).to(at::kBFloat16);
  // fp8 and int4 alike: every byte is below 0x40, which keeps fp8 away from its NaN; coefficient words are a scale of
  // 1/16 and a shift of 0.
  const Tensor words = at::randint(0x40, {kRows, heads, 4 * c.key_row_size(c.head_dim)}, at::kByte).view(at::kInt);
  if (c.kv_format == KvFormat::kInt4) words.slice(2, 0, c.quantization_groups).fill_(0x2c00);
  return words;
}

Cache make_cache(const AttentionCase& c) {
  Cache cache;
  const bool plain = c.kv_format == KvFormat::kPlain;
  int64_t rows = 0;
  if (c.paged()) {
    cache.page_table = random_page_table(c);
    rows = c.page_size * (cache.page_table.max().item<int64_t>() + 1);
  } else {
    for (int32_t length : c.lengths_k) cache.starts.push_back(rows), rows += length;
  }
  const Tensor sample = random_rows(c);
  for (Tensor* t : {&cache.k, &cache.v}) {
    *t = at::empty({1, rows, *c.kv_heads, c.key_row_size(c.head_dim)}, plain ? at::kBFloat16 : at::kInt);
    fill_used(*t, c, cache.starts, sample);
  }
  if (c.kv_format == KvFormat::kFp8) {
    cache.k_scale_shift = at::full({1, rows, *c.kv_heads}, 0x2c00, at::kInt);
    cache.v_scale_shift = cache.k_scale_shift.clone();
  }
  return cache;
}

Tensor int_tensor(const std::vector<int64_t>& values) { return at::tensor(values, at::kInt); }

AttentionSide our_side(const AttentionCase& c, const Tensor& q) {
  const Cache cache = make_cache(c);
  const int64_t groups = c.num_groups(), heads = c.heads_per_group();
  const auto grouped = [&](const Tensor& t) {
    return t.unsqueeze(3).expand({t.size(0), t.size(1), groups, heads, t.size(3)});
  };
  const auto grouped_words = [&](const Tensor& t) {
    return t.unsqueeze(3).expand({t.size(0), t.size(1), groups, heads});
  };
  ops::AttentionArgs args;
  args.query = q.view({1, q.size(1), groups, heads, c.head_dim});
  args.key = grouped(cache.k);
  args.value = grouped(cache.v);
  args.cu_seqlens_q = at::arange(q.size(1) + 1, at::kInt);
  args.seqused_k = int_tensor({c.used_k.begin(), c.used_k.end()});
  args.window_right = 0;
  args.bottom_right = true;
  if (c.paged()) {
    args.page_table = cache.page_table;
    args.page_size = c.page_size;
  } else {
    std::vector<int64_t> offsets = cache.starts;
    offsets.push_back(cache.k.size(1));
    args.cu_seqlens_k = int_tensor(offsets);
  }
  if (cache.k_scale_shift.defined()) {
    args.k_scale_shift = grouped_words(cache.k_scale_shift);
    args.v_scale_shift = grouped_words(cache.v_scale_shift);
  }
  return {Role::kOurs, {kOurs, [args] {
                          const at::NoGradGuard no_grad;
                          ops::call(args);
                        }}};
}

Tensor sdpa(const Tensor& q, const Tensor& k, const Tensor& v, const std::optional<Tensor>& mask, bool gqa) {
  return at::scaled_dot_product_attention(q, k, v, mask, 0.0, false, std::nullopt, gqa);
}

// Keys or values [1, kv heads, keys, head_dim] of each sequence, in memory of their own.
Tensors own_rows(const AttentionCase& c) {
  AttentionCase plain = c;
  plain.kv_format = KvFormat::kPlain;
  const Tensor sample = random_rows(plain).transpose(0, 1).contiguous();
  Tensors rows;
  for (int32_t keys : c.used_k)
    rows.push_back(sample.repeat({1, (keys + sample.size(1) - 1) / sample.size(1), 1})
                       .slice(1, 0, keys)
                       .contiguous()
                       .unsqueeze(0));
  return rows;
}

void add_rivals(std::vector<AttentionSide>& sides, const AttentionCase& c, const Tensor& q) {
  const Tensors k = own_rows(c), v = own_rows(c);
  const int64_t sequences = static_cast<int64_t>(k.size()), groups = c.num_groups(), heads = c.heads_per_group();
  const auto loop = [=](bool folded) {
    return [=] {
      const at::NoGradGuard no_grad;
      for (int64_t s = 0; s < sequences; ++s) {
        const Tensor one = q.select(1, s);
        if (folded) {
          sdpa(one.view({1, groups, heads, c.head_dim}), k[s], v[s], {}, false);
        } else {
          sdpa(one.view({1, groups * heads, 1, c.head_dim}), k[s], v[s], {}, true);
        }
      }
    };
  };
  sides.push_back({Role::kRival, {"sdpa_loop", loop(false)}});
  sides.push_back({Role::kOther, {"sdpa_loop_folded", loop(true)}});  // heads of a group as so many queries of one head

  const int64_t longest = *std::max_element(c.used_k.begin(), c.used_k.end());
  if (sequences * longest * groups * 2 * c.head_dim * 2 > kPaddedBytes) return;
  const auto pad = [&](const Tensors& rows) {
    Tensors padded;
    for (const Tensor& t : rows) padded.push_back(at::constant_pad_nd(t, {0, 0, 0, longest - t.size(2)}));
    return at::cat(padded).contiguous();
  };
  const Tensor padded_k = pad(k), padded_v = pad(v), padded_q = q.view({sequences, groups * heads, 1, c.head_dim});
  const Tensor used = at::tensor(std::vector<int64_t>(c.used_k.begin(), c.used_k.end()));
  const Tensor mask = (at::arange(longest).unsqueeze(0) < used.unsqueeze(1)).unsqueeze(1).unsqueeze(1);
  sides.push_back({Role::kRival, {"sdpa_padded", [=] {
                                    const at::NoGradGuard no_grad;
                                    sdpa(padded_q, padded_k, padded_v, mask, true);
                                  }}});
}

}  // namespace

std::vector<AttentionSide> decode_sides(const Row& row) {
  const AttentionCase& c = row.shape;
  at::manual_seed(1);
  const Tensor q = at::randn({1, static_cast<int64_t>(c.lengths_q.size()), c.heads, c.head_dim}).to(at::kBFloat16);
  std::vector<AttentionSide> sides{our_side(c, q)};
  add_rivals(sides, c, q);
  const auto buffer = std::make_shared<BandwidthBuffer>(static_cast<int64_t>(row.kv_bytes()));
  sides.push_back({Role::kRoof, {kRead, [buffer] { buffer->read(); }}});
  return sides;
}

}  // namespace xformers::bench
