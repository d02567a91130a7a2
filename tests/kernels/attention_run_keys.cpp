// Keys and values of an attention case: pages, integers, and rows that no sequence uses.
#include <algorithm>
#include <limits>
#include <random>

#include "tests/kernels/attention_run.h"
#include "tests/reference/quantization.h"

namespace xformers::testing {

int64_t AttentionRun::max_pages() const {
  int64_t most = 0;
  for (size_t b = 0; b < case_.used_k.size(); ++b) most = std::max(most, pages_of(case_, b));
  return most;
}

int64_t AttentionRun::num_page_entries() const {
  const size_t last = case_.used_k.size() - 1;
  return static_cast<int64_t>(last) * max_pages() + pages_of(case_, last);
}

int32_t* AttentionRun::page_table() const { return reinterpret_cast<int32_t*>(page_table_->data()); }

void AttentionRun::make_page_table() {
  const AttentionCase& c = case_;
  page_table_ = std::make_shared<GuardedBuffer>(static_cast<size_t>(num_page_entries()) * sizeof(int32_t));
  std::fill_n(page_table(), num_page_entries(), int32_t{-1});
  std::mt19937_64 random(c.seed + 99);
  std::vector<int32_t> order(static_cast<size_t>(c.seqlen_k / c.page_size));
  for (size_t page = 0; page < order.size(); ++page) order[page] = static_cast<int32_t>(page);
  std::shuffle(order.begin(), order.end(), random);
  size_t next = 0;
  for (size_t b = 0; b < c.used_k.size(); ++b) {
    if (c.shared_pages) next = 0, std::shuffle(order.begin(), order.end() - 1, random);
    for (int64_t page = 0; page < pages_of(c, b); ++page)
      page_table()[static_cast<int64_t>(b) * max_pages() + page] = order[next++];
  }
}

void AttentionRun::fill_words(StridedTensor& words, StridedTensor& scale_shift, int64_t dim) {
  const AttentionCase& c = case_;
  std::mt19937_64 random(c.seed + static_cast<uint64_t>(dim) + (&words == &k ? 1 : 2));
  std::uniform_real_distribution<float> unit;
  const bool int4 = c.kv_format == KvFormat::kInt4;
  const auto draw_coefficients = [&] {
    const float scale = int4 ? 0.05f + 0.3f * unit(random) : 0.002f + 0.01f * unit(random), shift = -2 * unit(random);
    return uint32_t{reference::to_float16_bits(scale)} | uint32_t{reference::to_float16_bits(shift)} << 16;
  };
  const auto draw_codes = [&] {
    auto word = static_cast<uint32_t>(random());
    for (int byte = 0; !int4 && byte < 4; ++byte) {
      if ((word >> 8 * byte & 0x7f) == 0x7f) word ^= 1u << 8 * byte;  // not NaN
    }
    return word;
  };
  words.fill_words([&](const Sizes& index) {
    return int4 && index[4] < c.quantization_groups ? draw_coefficients() : draw_codes();
  });
  if (!int4) scale_shift.fill_words([&](const Sizes&) { return draw_coefficients(); });
}

// Rows that no sequence uses must not be looked at: they are NaN, or have NaN coefficients.
void AttentionRun::spoil_unused_rows() {
  const AttentionCase& c = case_;
  if (c.used_k.empty()) return;
  std::vector<bool> used(static_cast<size_t>(c.seqlen_k));
  for (size_t b = 0; b < c.used_k.size(); ++b) {
    const reference::Sequence keys = sequence(b);
    for (int64_t key = 0; key < keys.num_keys; ++key) used[keys.key_row(key)] = true;
  }
  for (StridedTensor* t : {&k, &v, &k_scale_shift, &v_scale_shift}) {
    if (t->numel() == 0) continue;
    Sizes index{};
    for (index[1] = 0; index[1] < c.seqlen_k; ++index[1]) {
      if (used[index[1]]) continue;
      for (index[2] = 0; index[2] < t->sizes()[2]; ++index[2]) {
        for (index[3] = 0; index[3] < t->sizes()[3]; ++index[3]) {
          for (index[4] = 0; index[4] < t->sizes()[4]; ++index[4]) {
            if (c.kv_format == KvFormat::kPlain) {
              t->set(index, std::numeric_limits<double>::quiet_NaN());
            } else {
              t->set_word(index, 0xffffffffu);
            }
          }
        }
      }
    }
  }
}

reference::Sequence AttentionRun::sequence(size_t b) const {
  const AttentionCase& c = case_;
  const int64_t start = cu_seqlens_k.empty() ? 0 : cu_seqlens_k[b];
  reference::Sequence s{0, cu_seqlens_q[b], c.lengths_q[b], start, c.used_k.empty() ? c.lengths_k[b] : c.used_k[b]};
  if (!c.paged()) return s;
  s.page_size = c.page_size;
  const int32_t* const row = page_table() + static_cast<int64_t>(b) * max_pages();
  s.pages.assign(row, row + pages_of(c, b));
  return s;
}

std::vector<double> AttentionRun::key_values(const StridedTensor& rows, const StridedTensor& scale_shift,
                                             int64_t dim) const {
  const AttentionCase& c = case_;
  if (c.kv_format == KvFormat::kPlain) return rows.values();
  std::vector<double> values;
  std::vector<uint32_t> words(static_cast<size_t>(rows.sizes()[4]));
  Sizes i{};
  for (i[0] = 0; i[0] < rows.sizes()[0]; ++i[0])
    for (i[1] = 0; i[1] < rows.sizes()[1]; ++i[1])
      for (i[2] = 0; i[2] < rows.sizes()[2]; ++i[2])
        for (i[3] = 0; i[3] < rows.sizes()[3]; ++i[3]) {
          for (i[4] = 0; i[4] < rows.sizes()[4]; ++i[4]) words[i[4]] = rows.get_word(i);
          i[4] = 0;
          for (int64_t d = 0; d < dim; ++d) {
            values.push_back(c.kv_format == KvFormat::kInt4
                                 ? reference::dequantized_int4(c.dtype, words.data(), c.quantization_groups, dim, d)
                                 : reference::dequantized_fp8(c.dtype, words.data(), scale_shift.get_word(i), d));
          }
        }
  return values;
}

}  // namespace xformers::testing
