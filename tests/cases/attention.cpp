#include "tests/cases/attention.h"

#include <algorithm>
#include <charconv>
#include <cmath>
#include <numeric>
#include <sstream>
#include <stdexcept>

namespace xformers::testing {
namespace {

constexpr DType kDTypes[] = {DType::kFloat32, DType::kBFloat16, DType::kFloat16, DType::kFloat64};
constexpr std::pair<Memory, const char*> kMemoryNames[] = {
    {Memory::kHeadsFirst, "bhsd"}, {Memory::kPadded, "padded"}, {Memory::kFar, "far"}, {Memory::kQkv, "qkv"}};
constexpr std::pair<BiasMemory, const char*> kBiasMemoryNames[] = {
    {BiasMemory::kOdd, "odd"},           {BiasMemory::kKeyStride, "kstride"}, {BiasMemory::kSharedByHeads, "heads"},
    {BiasMemory::kSharedByRows, "rows"}, {BiasMemory::kSharedByKeys, "cols"}, {BiasMemory::kSharedBySequences, "seqs"}};
constexpr std::pair<BlockLayouts, const char*> kBlockLayoutNames[] = {
    {BlockLayouts::kWithBits, "bits"}, {BlockLayouts::kOne, "one"}, {BlockLayouts::kOfGroups, "groups"}};

[[noreturn]] void unreadable(std::string_view word) {
  throw std::invalid_argument("attention case: can't read '" + std::string(word) +
                              "'; tests/cases/attention.h lists the words");
}

std::vector<std::string_view> split(std::string_view text, char separator) {
  std::vector<std::string_view> parts;
  for (size_t begin = 0;;) {
    const size_t end = text.find(separator, begin);
    parts.push_back(text.substr(begin, end - begin));
    if (end == std::string_view::npos) return parts;
    begin = end + 1;
  }
}

template <class Number>
std::optional<Number> number(std::string_view text) {
  Number value{};
  const auto [end, error] = std::from_chars(text.data(), text.data() + text.size(), value);
  if (error != std::errc{} || end != text.data() + text.size()) return std::nullopt;
  return value;
}

// One comma-separated word of the text form, taken apart by its prefix.
class Word {
 public:
  explicit Word(std::string_view text) : text_(text) {}

  bool is(std::string_view name) const { return text_ == name; }

  template <class Number, class Target>
  bool read(std::string_view prefix, Target& target) const {
    if (!text_.starts_with(prefix)) return false;
    const auto value = number<Number>(text_.substr(prefix.size()));
    if (value) target = *value;
    return value.has_value();
  }

  // q17 is a length, q3+0+5 are those of packed sequences.
  bool read_lengths(std::string_view prefix, std::vector<int32_t>& lengths) const {
    if (!text_.starts_with(prefix) || text_.find('+') == std::string_view::npos) return false;
    for (std::string_view part : split(text_.substr(prefix.size()), '+')) {
      const auto value = number<int32_t>(part);
      if (!value) unreadable(text_);
      lengths.push_back(*value);
    }
    return true;
  }

  bool read_band(MaskBand& band) const {
    std::string_view rest = text_;
    const bool bottom_right = rest.ends_with("_br");
    if (bottom_right) rest.remove_suffix(3);
    if (rest == "causal") {
      band = {kUnbounded, 0, bottom_right};
      return true;
    }
    if (!rest.starts_with("band")) return false;
    const auto sides = split(rest.substr(4), '_');
    if (sides.size() != 2) unreadable(text_);
    const auto side = [&](std::string_view text) {
      const auto value = text == "*" ? kUnbounded : number<int64_t>(text);
      if (!value) unreadable(text_);
      return *value;
    };
    band = {side(sides[0]), side(sides[1]), bottom_right};
    return true;
  }

  // blocks64x32_25, blocks64x32_25@bits
  bool read_blocks(AttentionCase& c) const {
    if (!text_.starts_with("blocks")) return false;
    const auto parts = split(text_.substr(6), '@'), numbers = split(parts[0], '_');
    const auto sides = split(numbers[0], 'x');
    if (numbers.size() != 2 || sides.size() != 2) unreadable(text_);
    const auto q = number<int64_t>(sides[0]), k = number<int64_t>(sides[1]), percent = number<int64_t>(numbers[1]);
    if (!q || !k || !percent) unreadable(text_);
    c.block_q = *q, c.block_k = *k, c.block_percent = *percent;
    if (parts.size() == 1) return true;
    for (const auto& [layouts, name] : kBlockLayoutNames) {
      if (parts.size() == 2 && parts[1] == name) return c.block_layouts = layouts, true;
    }
    unreadable(text_);
  }

  bool read_bias(AttentionCase& c) const {
    if (!text_.starts_with("bias")) return false;
    const auto parts = split(text_, '@');
    const std::string_view values = parts[0];
    if (values == "bias")
      c.bias = BiasValues::kRandom;
    else if (values == "bias_blocks")
      c.bias = BiasValues::kBlocks;
    else if (Word(values).read<int64_t>("bias_prefix", c.bias_prefix))
      c.bias = BiasValues::kPrefix;
    else
      unreadable(text_);
    if (parts.size() == 1) return true;
    for (const auto& [memory, name] : kBiasMemoryNames) {
      if (parts.size() == 2 && parts[1] == name) {
        c.bias_memory = memory;
        return true;
      }
    }
    unreadable(text_);
  }

  // sinks, sinks@seqs
  bool read_per_head(std::string_view name, PerHead& numbers) const {
    if (!text_.starts_with(name)) return false;
    const std::string_view rest = text_.substr(name.size());
    if (!rest.empty() && rest != "@seqs") unreadable(text_);
    numbers = rest.empty() ? PerHead::kOfHeads : PerHead::kOfSequences;
    return true;
  }

  // page16, page16@shared
  bool read_pages(int64_t& page_size, bool& shared) const {
    const auto parts = split(text_, '@');
    if (!Word(parts[0]).read<int64_t>("page", page_size)) return false;
    shared = parts.size() == 2 && parts[1] == "shared";
    if (parts.size() > 1 && !shared) unreadable(text_);
    return true;
  }

  bool read_memory(Memory& memory) const {
    for (const auto& [value, name] : kMemoryNames) {
      if (is(name)) {
        memory = value;
        return true;
      }
    }
    return false;
  }

 private:
  std::string_view text_;
};

bool read_key_storage(const Word& word, AttentionCase& c) {
  if (word.read_pages(c.page_size, c.shared_pages)) return true;
  if (word.read<int64_t>("int4_", c.quantization_groups)) return c.kv_format = KvFormat::kInt4, true;
  if (word.is("fp8")) return c.kv_format = KvFormat::kFp8, true;
  return false;
}

void apply(const Word& word, std::string_view text, AttentionCase& c) {
  if (read_key_storage(word, c)) return;
  if (word.read_blocks(c)) return;
  if (word.read_band(c.band) || word.read_bias(c) || word.read_memory(c.memory)) return;
  if (word.read_lengths("q", c.lengths_q) || word.read_lengths("k", c.lengths_k)) return;
  if (word.read_lengths("used", c.used_k) || word.read_lengths("from", c.starts_k)) return;
  if (word.is("wide")) return void(c.wide_out = true);
  if (word.read<int64_t>("splits", c.num_splits)) return;
  if (word.is("dlse")) return void(c.dlse = true);
  if (word.read_per_head("alibi", c.alibi) || word.read_per_head("sinks", c.sinks)) return;
  if (word.read<double>("softcap", c.softcap)) return;
  if (word.is("vfull")) return void(c.value_unshared = true);
  if (word.read<int64_t>("b", c.batch) || word.read<int64_t>("q", c.seqlen_q) || word.read<int64_t>("kv", c.kv_heads))
    return;
  if (word.read<int64_t>("k", c.seqlen_k) || word.read<int64_t>("h", c.heads) || word.read<int64_t>("g", c.groups))
    return;
  if (word.read<int64_t>("dv", c.head_dim_v) || word.read<int64_t>("d", c.head_dim)) return;
  if (word.read<double>("p", c.dropout_p) || word.read<double>("scale", c.scale)) return;
  if (word.read<double>("amp", c.amplitude)) return;
  if (word.read<int>("t", c.threads) || word.read<uint64_t>("seed", c.seed)) return;
  unreadable(text);
}

void check(const AttentionCase& c, std::string_view text) {
  const auto require = [&](bool good, const char* what) {
    if (!good) throw std::invalid_argument("attention case '" + std::string(text) + "': " + what);
  };
  const int64_t groups = c.num_groups(), kv_heads = c.kv_heads.value_or(c.heads);
  require(groups > 0 && c.heads % groups == 0, "g must divide h");
  require(kv_heads == c.heads || kv_heads == groups || kv_heads == 1, "kv must be h, g or 1");
  const bool free_keys = !c.starts_k.empty() || c.paged();
  require(c.lengths_q.size() == (free_keys ? c.used_k : c.lengths_k).size(), "as many packed q as k lengths");
  require(!free_keys || c.lengths_k.empty(), "from and pages go without k lengths");
  require(c.starts_k.empty() || c.starts_k.size() == c.used_k.size(), "as many from as used");
  require(c.used_k.empty() || c.used_k.size() == c.lengths_q.size(), "as many used as k lengths");
  require(c.page_size >= 0 && (!c.paged() || c.packed()), "pages have packed queries, and at least one key each");
  const int64_t unit = c.kv_format == KvFormat::kPlain ? 1
                       : c.kv_format == KvFormat::kFp8 ? 4
                                                       : 8 * c.quantization_groups;
  require(unit > 0 && c.head_dim % unit == 0 && c.dim_v() % unit == 0,
          "head dims must be multiples of 4, or 8 * groups");
  require(c.memory != Memory::kQkv || !c.forward_only() || c.wide_out, "qkv has plain keys");
  require(!c.packed() || !c.block_mask(), "packed sequences have no block mask");
  require(!c.packed() || c.batch == 1, "packed sequences have b1");
  require(c.packed() || c.bias_memory != BiasMemory::kSharedBySequences, "sequences that share a bias are packed");
  require(c.memory != Memory::kQkv || (c.seqlen_q == c.seqlen_k && c.dim_v() == c.head_dim && !c.heads_shared()),
          "qkv needs equal lengths, heads and dims");
}

std::string join(const std::vector<int32_t>& lengths) {
  std::ostringstream out;
  for (size_t i = 0; i < lengths.size(); ++i) out << (i ? "+" : "") << lengths[i];
  return out.str();
}

}  // namespace

int64_t AttentionCase::key_row_size(int64_t dim) const {
  switch (kv_format) {
    case KvFormat::kPlain: return dim;
    case KvFormat::kInt4: return quantization_groups + dim / 8;
    case KvFormat::kFp8: return dim / 4;
  }
  return 0;
}

double AttentionCase::softmax_scale() const { return scale.value_or(1 / std::sqrt(static_cast<double>(head_dim))); }

int64_t pages_of(const AttentionCase& c, size_t b) {
  const int64_t start = c.starts_k.empty() ? 0 : c.starts_k[b];
  return (start + c.used_k[b] + c.page_size - 1) / c.page_size;
}

void set_totals(AttentionCase& c) {
  if (!c.packed()) return;
  c.seqlen_q = std::accumulate(c.lengths_q.begin(), c.lengths_q.end(), int64_t{0});
  if (!c.lengths_k.empty()) c.seqlen_k = std::accumulate(c.lengths_k.begin(), c.lengths_k.end(), int64_t{0});
  if (!c.paged()) return;
  int64_t most = 0, total = 0;
  for (size_t b = 0; b < c.used_k.size(); ++b) {
    most = std::max(most, pages_of(c, b));
    total += pages_of(c, b);
  }
  constexpr int64_t kUnusedPages = 2;
  c.seqlen_k = ((c.shared_pages ? most : total) + kUnusedPages) * c.page_size;
}

std::string to_text(const AttentionCase& c) {
  const AttentionCase standard;
  std::ostringstream out;
  out << "attention:" << name_of(c.dtype) << ",b" << c.batch;
  if (c.packed()) {
    out << ",q" << join(c.lengths_q);
    if (!c.lengths_k.empty()) out << ",k" << join(c.lengths_k);
    if (c.lengths_k.empty() && !c.paged()) out << ",k" << c.seqlen_k;
    if (!c.starts_k.empty()) out << ",from" << join(c.starts_k);
    if (!c.used_k.empty()) out << ",used" << join(c.used_k);
    if (c.paged()) out << ",page" << c.page_size << (c.shared_pages ? "@shared" : "");
  } else {
    out << ",q" << c.seqlen_q << ",k" << c.seqlen_k;
  }
  out << ",h" << c.heads;
  if (c.kv_heads) out << ",kv" << *c.kv_heads;
  if (c.groups) out << ",g" << *c.groups;
  if (c.kv_format == KvFormat::kInt4) out << ",int4_" << c.quantization_groups;
  if (c.kv_format == KvFormat::kFp8) out << ",fp8";
  if (c.value_unshared) out << ",vfull";
  out << ",d" << c.head_dim;
  if (c.head_dim_v) out << ",dv" << *c.head_dim_v;
  const auto side = [](int64_t window) { return window == kUnbounded ? std::string("*") : std::to_string(window); };
  if (c.band.window_left == kUnbounded && c.band.window_right == 0) {
    out << (c.band.bottom_right ? ",causal_br" : ",causal");
  } else if (c.band.window_left != kUnbounded || c.band.window_right != kUnbounded) {
    out << ",band" << side(c.band.window_left) << "_" << side(c.band.window_right)
        << (c.band.bottom_right ? "_br" : "");
  }
  if (c.block_mask()) out << ",blocks" << c.block_q << "x" << c.block_k << "_" << c.block_percent;
  for (const auto& [layouts, name] : kBlockLayoutNames) {
    if (c.block_mask() && layouts == c.block_layouts) out << "@" << name;
  }
  if (c.softcap != 0) out << ",softcap" << c.softcap;
  for (const auto& [name, numbers] : {std::pair{",alibi", c.alibi}, std::pair{",sinks", c.sinks}}) {
    if (numbers != PerHead::kNone) out << name << (numbers == PerHead::kOfSequences ? "@seqs" : "");
  }
  if (c.bias == BiasValues::kRandom) out << ",bias";
  if (c.bias == BiasValues::kBlocks) out << ",bias_blocks";
  if (c.bias == BiasValues::kPrefix) out << ",bias_prefix" << c.bias_prefix;
  for (const auto& [memory, name] : kBiasMemoryNames) {
    if (c.bias != BiasValues::kNone && memory == c.bias_memory) out << "@" << name;
  }
  for (const auto& [memory, name] : kMemoryNames) {
    if (memory == c.memory) out << "," << name;
  }
  if (c.wide_out) out << ",wide";
  if (c.num_splits != 0) out << ",splits" << c.num_splits;
  if (c.dropout_p != 0) out << ",p" << c.dropout_p;
  if (c.scale) out << ",scale" << *c.scale;
  if (c.amplitude != 1) out << ",amp" << c.amplitude;
  if (c.dlse) out << ",dlse";
  if (c.threads != standard.threads) out << ",t" << c.threads;
  if (c.seed != standard.seed) out << ",seed" << c.seed;
  return out.str();
}

AttentionCase parse_attention_case(std::string_view text) {
  constexpr std::string_view kName = "attention:";
  std::string_view rest = text;
  if (!rest.starts_with(kName)) unreadable(text);
  rest.remove_prefix(kName.size());
  const auto words = split(rest, ',');
  AttentionCase c;
  bool known = false;
  for (DType dtype : kDTypes) {
    if (words[0] == name_of(dtype)) c.dtype = dtype, known = true;
  }
  if (!known) unreadable(words[0]);
  for (size_t i = 1; i < words.size(); ++i) apply(Word(words[i]), words[i], c);
  check(c, text);
  set_totals(c);
  return c;
}

std::vector<AttentionCase> parse_attention_cases(const std::vector<std::string>& texts) {
  std::vector<AttentionCase> cases;
  for (const std::string& text : texts) {
    const size_t star = text.find('*');
    if (star != std::string::npos && text.starts_with("attention:*")) {
      for (DType dtype : kDTypes)
        cases.push_back(parse_attention_case("attention:" + (name_of(dtype) + text.substr(star + 1))));
    } else {
      cases.push_back(parse_attention_case(text));
    }
  }
  return cases;
}

}  // namespace xformers::testing
