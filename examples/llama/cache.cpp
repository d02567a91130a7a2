#include "examples/llama/cache.h"

#include <ATen/ops/empty.h>
#include <ATen/ops/empty_like.h>
#include <ATen/ops/tensor.h>
#include <fmt/format.h>

#include <numeric>

#include "examples/common/error.h"

namespace llama {
namespace {

namespace ops = xformers::ops;

// Text b has the rows [b capacity, (b + 1) capacity).
class PaddedCache final : public Cache {
 public:
  PaddedCache(const Model& model, int64_t texts, int64_t capacity) : Cache(model, texts, capacity, texts * capacity) {}

  at::Tensor append(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override {
    return ops::rope_padded(q, k, v, keys_[layer], values_[layer], q_seqstart_, k_seqstart_, k_seqlen_, rope_);
  }

 private:
  void extended(at::IntArrayRef counts) override {
    const auto mask = ops::BlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens(counts, capacity_, lengths_,
                                                                                     keys_.front().device());
    q_seqstart_ = mask.q_seqinfo.seqstart;
    k_seqstart_ = mask.k_seqinfo.seqstart;
    k_seqlen_ = mask.k_seqinfo.seqlen;
    bias_ = mask;
  }

  at::Tensor q_seqstart_, k_seqstart_, k_seqlen_;  // of the mask
};

// Texts take pages from one pool when their last page is full.
class PagedCache final : public Cache {
 public:
  PagedCache(const Model& model, int64_t texts, int64_t capacity, int64_t page_size)
      : Cache(model, texts, capacity, texts * pages_of(capacity, page_size) * page_size),
        page_size_(page_size),
        pages_(texts),
        free_(texts * pages_of(capacity, page_size)) {
    std::iota(free_.rbegin(), free_.rend(), 0);
  }

  at::Tensor append(int64_t layer, const at::Tensor& q, const at::Tensor& k, const at::Tensor& v) override {
    // Keys turn into a row of their own, then go to their pages.
    at::Tensor turned = at::empty_like(k), copied = at::empty_like(v);
    at::Tensor out = ops::rope_padded(q, k, v, turned, copied, q_seqstart_, q_seqstart_, counts_, rope_);
    keys_[layer].index_copy_(1, rows_, turned);
    values_[layer].index_copy_(1, rows_, copied);
    return out;
  }

 private:
  static int64_t pages_of(int64_t tokens, int64_t page_size) { return (tokens + page_size - 1) / page_size; }

  void extended(at::IntArrayRef counts) override {
    std::vector<int64_t> rows, before;
    for (int64_t b = 0; b < texts(); ++b) {
      std::vector<int64_t>& pages = pages_[b];
      while (static_cast<int64_t>(pages.size()) < pages_of(lengths_[b], page_size_)) {
        pages.push_back(free_.back());
        free_.pop_back();
      }
      before.push_back(lengths_[b] - counts[b]);
      for (int64_t t = before.back(); t < lengths_[b]; ++t) {
        rows.push_back(pages[t / page_size_] * page_size_ + t % page_size_);
      }
    }
    const int64_t width = pages_of(capacity_, page_size_);
    at::Tensor tables = at::zeros({texts(), width}, at::kInt);
    for (int64_t b = 0; b < texts(); ++b) {
      for (size_t i = 0; i < pages_[b].size(); ++i) tables.mutable_data_ptr<int>()[b * width + i] = pages_[b][i];
    }
    const at::Device device = keys_.front().device();
    rows_ = at::tensor(rows).to(device);
    counts_ = at::tensor(counts).to(device, at::kInt);
    rope_.first_seqpos = at::tensor(before).to(device);
    const auto mask = ops::PagedBlockDiagonalCausalWithOffsetPaddedKeysMask::from_seqlens(
        counts, lengths_, tables.to(device), page_size_);
    q_seqstart_ = mask.q_seqinfo.seqstart;
    bias_ = mask;
  }

  const int64_t page_size_;
  std::vector<std::vector<int64_t>> pages_;  // of each text
  std::vector<int64_t> free_;
  at::Tensor rows_, counts_, q_seqstart_;
};

}  // namespace

Cache::Cache(const Model& model, int64_t texts, int64_t capacity, int64_t rows)
    : config_(model.config), capacity_(capacity), lengths_(texts, 0) {
  rope_.scaling = ops::to_rope_scaling(config_.head_dim, config_.rope_theta, config_.rope_scaling);
  rope_.adjacents = config_.rope_adjacents;
  for (int64_t i = 0; i < config_.layers; ++i) {
    keys_.push_back(at::empty({1, rows, config_.kv_heads, 1, config_.head_dim}, model.embedding.options()));
    values_.push_back(at::empty_like(keys_.back()));
  }
}

void Cache::extend(at::IntArrayRef counts) {
  for (int64_t b = 0; b < texts(); ++b) {
    if (lengths_[b] + counts[b] > capacity_) {
      throw examples::Error(fmt::format(
          "text {} would grow to {} tokens, the cache holds {} of each.  Fix: a larger --capacity, a shorter "
          "prompt, or a smaller --tokens",
          b + 1, lengths_[b] + counts[b], capacity_));
    }
  }
  for (int64_t b = 0; b < texts(); ++b) lengths_[b] += counts[b];
  extended(counts);
}

int64_t Cache::bytes() const {
  int64_t sum = 0;
  for (size_t i = 0; i < keys_.size(); ++i) sum += keys_[i].nbytes() + values_[i].nbytes();
  return sum;
}

std::unique_ptr<Cache> make_cache(const Model& model, int64_t texts, int64_t capacity, int64_t page_size) {
  if (page_size == 0) return std::make_unique<PaddedCache>(model, texts, capacity);
  return std::make_unique<PagedCache>(model, texts, capacity, page_size);
}

}  // namespace llama
