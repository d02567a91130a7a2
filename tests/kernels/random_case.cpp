#include "tests/kernels/random_case.h"

#include <initializer_list>
#include <random>

namespace xformers::testing {
namespace {

class RandomCase {
 public:
  explicit RandomCase(uint64_t seed) : random_(seed * 7919 + 1) {
    case_.seed = seed;
    case_.dtype = pick({DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64});
    case_.threads = static_cast<int>(between(1, 4));
    shape();
    mask();
    storage();
    if (case_.packed()) return;
    if (chance(3)) bias();
    if (!case_.heads_shared() && chance(8) && case_.seqlen_q == case_.seqlen_k && case_.kv_format == KvFormat::kPlain) {
      case_.head_dim_v = {};
      case_.memory = Memory::kQkv;
    }
  }
  const AttentionCase& get() const { return case_; }

  // The same with something done to its scores.
  const AttentionCase& modified() {
    AttentionCase& c = case_;
    const auto per_head = [&] { return pick({PerHead::kNone, PerHead::kOfHeads, PerHead::kOfSequences}); };
    c.softcap = pick({0.0, 0.5, 4.0, 30.0});
    c.alibi = per_head(), c.sinks = per_head();
    if (c.packed() && chance(2)) {
      c.bias = pick({BiasValues::kRandom, BiasValues::kPrefix, BiasValues::kBlocks});
      if (c.bias == BiasValues::kPrefix) c.bias_prefix = between(0, 60);
      c.bias_memory = pick({BiasMemory::kDense, BiasMemory::kKeyStride, BiasMemory::kSharedByHeads,
                            BiasMemory::kSharedBySequences, BiasMemory::kSharedByRows});
    }
    return c;
  }

 private:
  int64_t between(int64_t low, int64_t high) { return std::uniform_int_distribution<int64_t>(low, high)(random_); }
  bool chance(int one_in) { return between(1, one_in) == 1; }
  template <class T>
  T pick(std::initializer_list<T> values) {
    return *(values.begin() + between(0, static_cast<int64_t>(values.size()) - 1));
  }

  void shape() {
    AttentionCase& c = case_;
    c.groups = between(1, 3);
    c.heads = *c.groups * between(1, 4);
    if (chance(3)) c.kv_heads = chance(2) ? 1 : *c.groups;
    c.head_dim = chance(2) ? pick<int64_t>({16, 32, 64, 128}) : between(1, 100);
    if (chance(3)) c.head_dim_v = between(1, 100);
    c.memory = pick({Memory::kRows, Memory::kHeadsFirst, Memory::kPadded});
    if (chance(3)) return packed();
    c.batch = between(1, 2);
    c.seqlen_q = chance(4) ? between(0, 3) : between(1, 150);
    c.seqlen_k = chance(5) ? c.seqlen_q : between(0, 200);
  }

  void packed() {
    AttentionCase& c = case_;
    const int kind = static_cast<int>(between(0, 3));
    const int64_t longest_q = chance(3) ? 2 : 40, longest_k = chance(4) ? 300 : 80;
    if (kind == 2) c.seqlen_k = between(longest_k, 2 * longest_k);
    if (kind == 3) c.page_size = pick<int64_t>({1, 7, 16, 32, 64, 100}), c.shared_pages = chance(3);
    const bool starts = kind == 2 || (kind == 3 && chance(2));
    for (int64_t n = between(2, 5); n > 0; --n) {
      c.lengths_q.push_back(static_cast<int32_t>(between(0, longest_q)));
      const int64_t length = between(0, longest_k);
      if (kind < 2) c.lengths_k.push_back(static_cast<int32_t>(length));
      if (kind > 0) c.used_k.push_back(static_cast<int32_t>(kind == 1 ? between(0, length) : length));
      if (starts) c.starts_k.push_back(static_cast<int32_t>(between(0, kind == 2 ? c.seqlen_k - length : 150)));
    }
    set_totals(c);
  }

  // How keys, values and out are stored.
  void storage() {
    AttentionCase& c = case_;
    c.wide_out = chance(6);
    if (chance(4)) c.num_splits = between(1, 9);
    if (!chance(4)) return;
    c.kv_format = pick({KvFormat::kInt4, KvFormat::kFp8});
    if (c.kv_format == KvFormat::kInt4) c.quantization_groups = pick<int64_t>({1, 2, 4, 8});
    const int64_t unit = c.kv_format == KvFormat::kFp8 ? 4 : 8 * c.quantization_groups;
    c.head_dim = (c.head_dim + unit - 1) / unit * unit;
    if (c.head_dim_v) c.head_dim_v = (*c.head_dim_v + unit - 1) / unit * unit;
  }

  void mask() {
    AttentionCase& c = case_;
    const int kind = static_cast<int>(between(0, 3));
    if (kind == 1) c.band = {kUnbounded, 0, chance(2)};
    if (kind == 2) c.band = {between(0, 70), chance(3) ? kUnbounded : between(0, 70), chance(2)};
    if (chance(4)) c.dropout_p = pick({0.1, 0.5, 0.9});
    if (chance(4)) c.scale = pick({0.1, 0.3, 1.0});
    c.dlse = chance(3);
  }

  void bias() {
    AttentionCase& c = case_;
    c.bias = pick({BiasValues::kRandom, BiasValues::kPrefix, BiasValues::kBlocks});
    if (c.bias == BiasValues::kPrefix) c.bias_prefix = between(0, c.seqlen_k);
    c.bias_memory = pick({BiasMemory::kDense, BiasMemory::kOdd, BiasMemory::kKeyStride, BiasMemory::kSharedByHeads,
                          BiasMemory::kSharedByRows});
  }

  std::mt19937_64 random_;
  AttentionCase case_;
};

}  // namespace

AttentionCase random_case(uint64_t seed) { return RandomCase(seed).get(); }
AttentionCase random_modified_case(uint64_t seed) { return RandomCase(seed).modified(); }

}  // namespace xformers::testing
