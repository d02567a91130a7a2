#include "tests/kernels/attention_run.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <random>

#include "tests/kernels/attention_backend.h"

namespace xformers::testing {
namespace {

constexpr uint64_t kPhiloxSeed = 0x1234567890abcdefull, kPhiloxOffset = 0x500000003ull;

// Strides of [batch, seqlen, groups, heads, dim].
Sizes heads_strides(Memory memory, const Sizes& s) {
  const int64_t row = memory == Memory::kPadded ? s[4] + 3 : s[4];
  const int64_t rows = s[2] * s[3] * row;  // of one query or key, all heads
  switch (memory) {
    case Memory::kHeadsFirst: return {s[1] * rows, row, s[3] * s[1] * row, s[1] * row, 1};
    case Memory::kPadded: return {s[1] * (rows + 5) + 7, rows + 5, s[3] * row, row, 1};
    case Memory::kFar: return {rows, int64_t{1} << 30, s[3] * row, row, 1};
    case Memory::kQkv: return {s[1] * 3 * rows, 3 * rows, s[3] * row, row, 1};
    case Memory::kRows: break;
  }
  return {s[1] * rows, rows, s[3] * row, row, 1};
}

HeadsTensor to_heads(const StridedTensor& t) { return {t.data(), t.stride(0), t.stride(1), t.stride(2), t.stride(3)}; }

RowTensor to_rows(const StridedTensor& t) { return {t.data(), t.stride(0), t.stride(1), t.stride(2)}; }

ScoreBias to_bias(const StridedTensor& t) {
  return {t.data(), t.stride(0), t.stride(1), t.stride(2), t.stride(3), t.stride(4)};
}

HeadNumbers to_numbers(const StridedTensor& t) { return {t.data(), t.stride(0), t.stride(1), t.stride(2)}; }

std::vector<int32_t> running_sums(const std::vector<int32_t>& lengths) {
  std::vector<int32_t> sums{0};
  for (int32_t length : lengths) sums.push_back(sums.back() + length);
  return sums;
}

// The same memory read with stride 0 along every dimension where it has one entry and `sizes` has more.
StridedTensor expanded(const StridedTensor& t, const Sizes& sizes) {
  Sizes strides;
  for (int dim = 0; dim < 5; ++dim) strides[dim] = t.sizes()[dim] == sizes[dim] ? t.stride(dim) : 0;
  return StridedTensor(t, sizes, strides, 0);
}

StridedTensor make_bias(DType dtype, BiasMemory memory, const Sizes& full, const Sizes& sizes) {
  Sizes strides;
  strides[4] = memory == BiasMemory::kKeyStride ? 3 : 1;
  strides[3] = sizes[4] * strides[4];
  if (memory == BiasMemory::kOdd) strides[3] = sizes[4] + 1 + sizes[4] % 2;  // an odd row stride
  if (memory == BiasMemory::kKeyStride) strides[3] += 1;
  for (int dim = 2; dim >= 0; --dim) strides[dim] = strides[dim + 1] * sizes[dim + 1];
  const int64_t offset = memory == BiasMemory::kOdd ? 1 : 0;
  const StridedTensor own(dtype, sizes, strides, offset);
  for (int dim = 0; dim < 5; ++dim) {
    if (sizes[dim] != full[dim]) strides[dim] = 0;
  }
  return StridedTensor(own, full, strides, offset);
}

}  // namespace

AttentionRun::AttentionRun(const AttentionCase& c) : case_(c) {
  allocate();
  fill();
}

void AttentionRun::allocate() {
  const AttentionCase& c = case_;
  const int64_t groups = c.num_groups(), heads = c.heads_per_group();
  const Sizes q_sizes{c.batch, c.seqlen_q, groups, heads, c.head_dim};
  const Sizes k_sizes{c.batch, c.seqlen_k, groups, heads, c.key_row_size(c.head_dim)};
  const Sizes v_sizes{c.batch, c.seqlen_k, groups, heads, c.key_row_size(c.dim_v())};
  const Sizes out_sizes{c.batch, c.seqlen_q, groups, heads, c.dim_v()};
  const DType wide = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  const bool words = c.kv_format != KvFormat::kPlain;
  const auto make_of = [&](DType dtype, const Sizes& sizes) {
    const Memory memory = c.memory == Memory::kQkv ? Memory::kRows : c.memory;
    return StridedTensor(dtype, sizes, heads_strides(memory, sizes));
  };
  const auto make = [&](const Sizes& sizes) { return make_of(c.dtype, sizes); };
  const auto make_shared_heads = [&](Sizes sizes) {
    const Sizes full = sizes;
    if (c.heads_shared()) sizes[3] = 1;
    if (c.heads_shared() && *c.kv_heads == 1) sizes[2] = 1;
    return expanded(make_of(words ? DType::kFloat32 : c.dtype, sizes), full);
  };
  const auto make_qkv = [&](StridedTensor& a, StridedTensor& b, StridedTensor& d) {
    const Sizes strides = heads_strides(Memory::kQkv, q_sizes);
    const int64_t part = groups * heads * c.head_dim;
    Sizes whole_sizes = q_sizes, whole_strides = strides;
    whole_sizes[2] *= 3;
    whole_strides[2] = heads * c.head_dim;
    const StridedTensor whole(c.dtype, whole_sizes, whole_strides);
    a = StridedTensor(whole, q_sizes, strides, 0);
    b = StridedTensor(whole, k_sizes, strides, part);
    d = StridedTensor(whole, v_sizes, strides, 2 * part);
  };
  if (c.memory == Memory::kQkv) {
    make_qkv(q, k, v);
    make_qkv(dq, dk, dv);
  } else {
    q = make(q_sizes);
    k = make_shared_heads(k_sizes);
    v = c.value_unshared ? make_of(words ? DType::kFloat32 : c.dtype, v_sizes) : make_shared_heads(v_sizes);
    dq = make(q_sizes);
    dk = make(k_sizes);
    dv = make(v_sizes);
  }
  if (c.kv_format == KvFormat::kFp8) {
    const Sizes sizes{c.batch, c.seqlen_k, groups, heads, 1};
    k_scale_shift = make_shared_heads(sizes);
    v_scale_shift = c.value_unshared ? make_of(DType::kFloat32, sizes) : make_shared_heads(sizes);
  }
  out = make_of(c.wide_out ? wide : c.dtype, out_sizes);
  dout = make(out_sizes);

  const int64_t row = c.seqlen_q + (c.memory == Memory::kPadded ? 3 : 0);
  const Sizes row_sizes{c.batch, groups, heads, c.seqlen_q, 1};
  const Sizes row_strides{groups * heads * row, heads * row, row, 1, 1};
  lse = StridedTensor(wide, row_sizes, row_strides);
  lse_low = StridedTensor(wide, row_sizes, row_strides);
  dlse = StridedTensor(wide, row_sizes, row_strides);

  const Sizes numbers{c.num_sequences(), groups, heads, 1, 1}, number_strides{groups * heads, heads, 1, 1, 1};
  const auto make_numbers = [&](PerHead kind, StridedTensor& given, StridedTensor& gradient) {
    if (kind == PerHead::kNone) return;
    Sizes sizes = numbers;
    if (kind == PerHead::kOfHeads) sizes[0] = 1;
    given = expanded(StridedTensor(wide, sizes, number_strides), numbers);
    gradient = StridedTensor(wide, numbers, number_strides);
  };
  make_numbers(c.alibi, slopes, dslopes);
  make_numbers(c.sinks, sinks, dsinks);
  allocate_bias();
  if (c.packed()) {
    cu_seqlens_q = running_sums(c.lengths_q);
    cu_seqlens_k = c.lengths_k.empty() ? c.starts_k : running_sums(c.lengths_k);
    used_k = c.used_k;
  }
  if (c.paged()) make_page_table();
  if (c.block_mask()) make_blocks();
}

void AttentionRun::allocate_bias() {
  const AttentionCase& c = case_;
  if (c.bias == BiasValues::kNone) return;
  Sizes full{c.batch, c.num_groups(), c.heads_per_group(), c.seqlen_q, c.seqlen_k};
  if (c.packed()) {
    const std::vector<int32_t>& keys = c.used_k.empty() ? c.lengths_k : c.used_k;
    full[0] = c.num_sequences();
    full[3] = *std::max_element(c.lengths_q.begin(), c.lengths_q.end()) + 1;
    full[4] = *std::max_element(keys.begin(), keys.end()) + 2;
  }
  Sizes sizes = full;
  if (c.bias_memory == BiasMemory::kSharedByHeads) sizes[0] = sizes[1] = sizes[2] = 1;
  if (c.bias_memory == BiasMemory::kSharedBySequences) sizes[0] = 1;
  if (c.bias_memory == BiasMemory::kSharedByRows) sizes[3] = 1;
  if (c.bias_memory == BiasMemory::kSharedByKeys) sizes[4] = 1;
  bias = make_bias(c.dtype, c.bias_memory, full, sizes);
  Sizes own = full;
  for (int dim = 0; c.packed() && dim < 3; ++dim) own[dim] = sizes[dim];
  const DType wide = c.dtype == DType::kFloat64 ? DType::kFloat64 : DType::kFloat32;
  dbias = make_bias(own != full ? wide : c.dtype, c.bias_memory, own, own);
  if (c.packed()) dbias.fill(0);  // as the caller does
}

bool AttentionRun::shares_bias() const {
  const Sizes &own = dbias.sizes(), &full = bias.sizes();
  return case_.packed() && (own[0] < full[0] || own[1] < full[1] || own[2] < full[2]);
}

void AttentionRun::fill() {
  const AttentionCase& c = case_;
  std::mt19937_64 random(c.seed);
  std::normal_distribution<double> normal;
  const auto draw = [&](const Sizes&) { return normal(random); };
  q.fill([&](const Sizes&) { return c.amplitude * normal(random); });
  if (c.kv_format == KvFormat::kPlain) {
    k.fill(draw);  // shared heads are drawn again for every head; the last one stays
    v.fill(draw);
  } else {
    fill_words(k, k_scale_shift, c.head_dim);
    fill_words(v, v_scale_shift, c.dim_v());
  }
  dout.fill(draw);
  dlse.fill(draw);

  const double infinity = std::numeric_limits<double>::infinity();
  constexpr int64_t kBlock = 32;
  if (c.bias != BiasValues::kNone) {
    std::vector<bool> hidden(static_cast<size_t>(bias.sizes()[4] / kBlock + 1));
    for (size_t block = 0; block < hidden.size(); ++block) hidden[block] = random() % 2 == 0;
    bias.fill([&](const Sizes& index) {
      const double value = normal(random);
      const bool room = c.packed() && (index[3] + 1 >= bias.sizes()[3] || index[4] + 2 >= bias.sizes()[4]);
      if (room && c.bias_memory != BiasMemory::kSharedByRows && c.bias_memory != BiasMemory::kSharedByKeys) {
        return std::numeric_limits<double>::quiet_NaN();  // of no sequence
      }
      if (c.bias == BiasValues::kPrefix && index[4] < c.bias_prefix) return -infinity;
      if (c.bias == BiasValues::kBlocks && (index[3] % 3 == 2 || hidden[index[4] / kBlock])) return -infinity;
      return value;
    });
  }

  if (c.alibi != PerHead::kNone) slopes.fill([&](const Sizes&) { return std::exp2(-std::abs(4 * normal(random))); });
  if (c.sinks != PerHead::kNone) sinks.fill([&](const Sizes&) { return 2 * normal(random); });

  spoil_unused_rows();
}

AttentionShape AttentionRun::shape() const {
  return {.dtype = case_.dtype,
          .batch = case_.batch,
          .seqlen_q = case_.seqlen_q,
          .seqlen_k = case_.seqlen_k,
          .num_groups = case_.num_groups(),
          .heads_per_group = case_.heads_per_group(),
          .head_dim = case_.head_dim,
          .head_dim_v = case_.dim_v()};
}

SeqLayout AttentionRun::layout() const {
  if (!case_.packed()) return {};
  SeqLayout layout{.num_sequences = static_cast<int64_t>(case_.lengths_q.size()),
                   .cu_seqlens_q = cu_seqlens_q.data(),
                   .cu_seqlens_k = cu_seqlens_k.empty() ? nullptr : cu_seqlens_k.data(),
                   .seqused_k = used_k.empty() ? nullptr : used_k.data(),
                   .pages = {}};
  if (case_.bias != BiasValues::kNone) layout.most_queries = bias.sizes()[3], layout.most_keys = bias.sizes()[4];
  if (case_.paged()) layout.pages = {page_table(), max_pages(), max_pages(), case_.page_size};
  return layout;
}

Dropout AttentionRun::dropout() const {
  return {.p = case_.dropout_p, .philox_seed = kPhiloxSeed + case_.seed, .philox_offset = kPhiloxOffset};
}

ScoreModifiers AttentionRun::modifiers() const {
  ScoreModifiers mods;
  if (case_.bias != BiasValues::kNone) mods.bias = to_bias(bias);
  mods.softcap = case_.softcap;
  mods.alibi_slopes = to_numbers(slopes), mods.sinks = to_numbers(sinks);
  return mods;
}

AttentionFwdParams AttentionRun::forward_params() const {
  AttentionFwdParams p;
  p.shape = shape();
  p.q = to_heads(q), p.k = to_heads(k), p.v = to_heads(v), p.out = to_heads(out);
  p.lse = to_rows(lse), p.lse_low = to_rows(lse_low);
  p.seq = layout();
  p.band = case_.band;
  p.blocks = blocks();
  p.mods = modifiers();
  p.dropout = dropout();
  p.wide_out = case_.wide_out;
  p.num_splits = case_.num_splits;
  p.quantization = {.format = case_.kv_format,
                    .num_groups = case_.quantization_groups,
                    .k_scale_shift = to_heads(k_scale_shift),
                    .v_scale_shift = to_heads(v_scale_shift)};
  p.softmax_scale = case_.softmax_scale();
  return p;
}

AttentionBwdParams AttentionRun::backward_params() const {
  AttentionBwdParams p;
  p.shape = shape();
  p.q = to_heads(q), p.k = to_heads(k), p.v = to_heads(v), p.out = to_heads(out), p.dout = to_heads(dout);
  p.lse = to_rows(lse), p.lse_low = to_rows(lse_low);
  if (case_.dlse) p.dlse = to_rows(dlse);
  p.dq = to_heads(dq), p.dk = to_heads(dk), p.dv = to_heads(dv);
  p.seq = layout();
  p.band = case_.band;
  p.blocks = blocks();
  p.mods = modifiers();
  if (case_.bias != BiasValues::kNone) {
    p.dbias = to_bias(dbias);
    p.dbias_shared = shares_bias();
    const Sizes &own = dbias.sizes(), &full = bias.sizes();
    if (p.dbias_shared && own[0] < full[0]) p.dbias.batch_stride = 0;
    if (p.dbias_shared && own[1] < full[1]) p.dbias.group_stride = 0;
    if (p.dbias_shared && own[2] < full[2]) p.dbias.head_stride = 0;
  }
  p.dslopes = to_numbers(dslopes), p.dsinks = to_numbers(dsinks);
  p.dropout = dropout();
  p.softmax_scale = case_.softmax_scale();
  return p;
}

void AttentionRun::forward() { run_forward(forward_params(), case_.threads); }
void AttentionRun::backward() { run_backward(backward_params(), case_.threads); }

reference::AttentionProblem AttentionRun::problem() const {
  const AttentionCase& c = case_;
  reference::AttentionProblem p;
  p.batch = c.batch, p.seqlen_q = c.seqlen_q, p.seqlen_k = c.seqlen_k;
  p.heads = c.heads, p.head_dim = c.head_dim, p.head_dim_v = c.dim_v();
  p.q = q.values(), p.dout = dout.values();
  p.k = key_values(k, k_scale_shift, c.head_dim), p.v = key_values(v, v_scale_shift, c.dim_v());
  if (c.bias != BiasValues::kNone) {
    p.bias = bias.values();
    p.bias_rows = bias.sizes()[3], p.bias_cols = bias.sizes()[4];
    p.one_bias = dbias.sizes()[0] < bias.sizes()[0];
    p.one_bias_head = shares_bias() && c.bias_memory == BiasMemory::kSharedByHeads;
  }
  p.softcap = c.softcap;
  if (c.alibi != PerHead::kNone) p.slopes = slopes.values();
  if (c.sinks != PerHead::kNone) p.sinks = sinks.values();
  if (c.dlse) p.dlse = dlse.values();
  if (c.packed()) {
    for (size_t b = 0; b < c.lengths_q.size(); ++b) p.sequences.push_back(sequence(b));
  } else {
    for (int64_t b = 0; b < c.batch; ++b) p.sequences.push_back({b, 0, c.seqlen_q, 0, c.seqlen_k});
  }
  if (c.band.window_left != kUnbounded) p.window_left = c.band.window_left;
  if (c.band.window_right != kUnbounded) p.window_right = c.band.window_right;
  p.bottom_right = c.band.bottom_right;
  p.shown = shown;
  p.scale = c.softmax_scale();
  p.held_scores = held_scores;
  const Dropout d = dropout();
  p.dropout_p = d.p, p.philox_seed = d.philox_seed, p.philox_offset = d.philox_offset;
  return p;
}

reference::AttentionResult AttentionRun::result() const {
  reference::AttentionResult r;
  r.out = out.values(), r.lse = lse.values();
  r.dq = dq.values(), r.dk = dk.values(), r.dv = dv.values();
  if (case_.bias != BiasValues::kNone) r.dbias = dbias.values();
  if (case_.alibi != PerHead::kNone) r.dslopes = dslopes.values();
  if (case_.sinks != PerHead::kNone) r.dsinks = dsinks.values();
  return r;
}

std::vector<unsigned char> AttentionRun::output_bytes() const {
  std::vector<unsigned char> all;
  for (const StridedTensor* t : {&out, &lse, &lse_low, &dq, &dk, &dv, &dbias, &dslopes, &dsinks}) {
    const std::vector<unsigned char> bytes = t->bytes();
    all.insert(all.end(), bytes.begin(), bytes.end());
  }
  return all;
}

std::string AttentionRun::damaged_output() const {
  const std::vector<StridedTensor> gradients =
      case_.memory == Memory::kQkv ? std::vector<StridedTensor>{dq, dk, dv} : std::vector<StridedTensor>{};
  const auto damaged = [](const StridedTensor& t, const std::vector<StridedTensor>& sharing = {}) {
    return t.damaged_byte(sharing) >= 0;
  };
  if (damaged(out)) return "out";
  if (damaged(lse)) return "lse";
  if (damaged(lse_low)) return "lse_low";
  if (damaged(dq, gradients)) return "dq";
  if (damaged(dk, gradients)) return "dk";
  if (damaged(dv, gradients)) return "dv";
  if (damaged(dbias)) return "dbias";
  return "";
}

}  // namespace xformers::testing
