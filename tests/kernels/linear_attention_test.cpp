// Linear attention without LibTorch: every instruction set and element type against plain loops over all pairs in
// double, forward and backward, in memory that ends where the rows end.
#include <algorithm>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/base/error.h"
#include "xformers/kernels/cpu/linear_attention/linear_attention_cpu.h"

namespace xformers::testing {
namespace {

constexpr int64_t kDim = 5, kDimV = 3, kColumns = 4;
const cpu::Threads kThreads{2, nullptr};

struct Case {
  DType dtype;
  FeatureMap map;
  bool causal, normalize, decays;
  int64_t seqlen;
  std::string where;

  int64_t features() const {
    return map == FeatureMap::kGiven ? kDim : map == FeatureMap::kExp ? kColumns : 2 * kColumns;
  }
};

template <class Body>
void for_each_case(const Body& body) {
  for_each_isa([&](const std::string& isa) {
    for (DType dtype : kBlockDTypes) {
      for (int64_t seqlen : {1, 17, 70}) {
        for (int kind = 0; kind < 12; ++kind) {
          const auto map = static_cast<FeatureMap>(kind % 3);
          const bool causal = kind / 3 % 2 == 1, normalize = kind / 6 == 0, decays = causal && kind % 2 == 0;
          body(
              Case{dtype, map, causal, normalize, decays, seqlen,
                   isa + " " + name_of(dtype) + " seqlen " + std::to_string(seqlen) + " kind " + std::to_string(kind)});
        }
      }
    }
  });
}

// One sequence of one head: all inputs of a call.
struct Problem {
  explicit Problem(const Case& c)
      : q(c.dtype, c.seqlen, kDim),
        k(c.dtype, c.seqlen, kDim),
        v(c.dtype, c.seqlen, kDimV),
        dout(c.dtype, c.seqlen, kDimV),
        omega(compute_of(c.dtype), kDim, kColumns),
        log_decay(compute_of(c.dtype), c.seqlen, 1) {
    uint64_t seed = 1;
    for (RowBuffer* rows : {&q, &k, &v, &dout, &omega, &log_decay}) rows->randomise(seed++);
    for (int64_t i = 0; i < c.seqlen; ++i) log_decay.set(i, -std::abs(log_decay.get(i)));
    // Given features are weights: no denominator is near 0.
    for (int64_t i = 0; c.map == FeatureMap::kGiven && i < q.count(); ++i) {
      q.set(i, std::abs(q.get(i)) + 0.1);
      k.set(i, std::abs(k.get(i)) + 0.1);
    }
  }
  LinearAttentionShape shape(const Case& c) const {
    return {.dtype = c.dtype,
            .map = c.map,
            .causal = c.causal,
            .normalize = c.normalize,
            .num_sequences = 1,
            .num_heads = 1,
            .seqlen_q = c.seqlen,
            .seqlen_k = c.seqlen,
            .head_dim = kDim,
            .head_dim_v = kDimV,
            .num_features = c.features()};
  }
  LinearAttentionInputs inputs(const Case& c) const {
    return {.q = rows_of(q, kDim),
            .k = rows_of(k, kDim),
            .v = rows_of(v, kDimV),
            .omega = c.map == FeatureMap::kGiven ? nullptr : omega.data(),
            .log_decay = c.decays ? log_decay.data() : nullptr};
  }
  static HeadsTensor rows_of(const RowBuffer& rows, int64_t width) {
    return {.data = rows.data(), .batch_stride = rows.count(), .seq_stride = width};
  }

  RowBuffer q, k, v, dout, omega, log_decay;
};

// The same by the formula, all pairs.
struct Exact {
  using Matrix = std::vector<std::vector<double>>;
  static Matrix zeros(int64_t rows, int64_t columns) { return Matrix(rows, std::vector<double>(columns)); }

  Exact(const Case& c, const Problem& p)
      : n(c.seqlen),
        m(c.features()),
        decay(zeros(n, n)),
        fq(features(c, p, p.q)),
        fk(features(c, p, p.k)),
        out(zeros(n, kDimV)),
        dv(zeros(n, kDimV)),
        dq(zeros(n, kDim)),
        dk(zeros(n, kDim)),
        dlog_decay(zeros(n, 1)) {
    Matrix dfq = zeros(n, m), dfk = zeros(n, m);
    for (int64_t i = 0; i < n; ++i) {
      const int64_t end = c.causal ? i + 1 : n;
      double total = 0;
      std::vector<double> weights(n);
      for (int64_t j = 0; j < end; ++j) {
        double sum = 0;
        for (int64_t t = j + 1; t <= i && c.decays; ++t) sum += p.log_decay.get(t);
        decay[i][j] = std::exp(sum);
        for (int64_t f = 0; f < m; ++f) weights[j] += decay[i][j] * fq[i][f] * fk[j][f];
        total += weights[j];
      }
      const double scale = c.normalize ? 1 / total : 1;
      double delta = 0;
      for (int64_t d = 0; d < kDimV; ++d) {
        for (int64_t j = 0; j < end; ++j) out[i][d] += scale * weights[j] * p.v.get(j, d);
        delta += c.normalize ? p.dout.get(i, d) * out[i][d] : 0;
      }
      for (int64_t j = 0; j < end; ++j) {
        double dweight = -delta;
        for (int64_t d = 0; d < kDimV; ++d) {
          dweight += p.dout.get(i, d) * p.v.get(j, d);
          dv[j][d] += scale * weights[j] * p.dout.get(i, d);
        }
        for (int64_t t = j + 1; t <= i; ++t) dlog_decay[t][0] += scale * dweight * weights[j];
        for (int64_t f = 0; f < m; ++f) {
          dfq[i][f] += scale * dweight * decay[i][j] * fk[j][f];
          dfk[j][f] += scale * dweight * decay[i][j] * fq[i][f];
        }
      }
    }
    through_map(c, p, p.q, fq, dfq, dq);
    through_map(c, p, p.k, fk, dfk, dk);
  }

  static double projection(const Case& c, const Problem& p, const RowBuffer& x, int64_t i, int64_t f) {
    double sum = 0;
    for (int64_t d = 0; d < kDim; ++d) sum += x.get(i, d) * std::pow(kDim, -0.25) * omega(c, p, d, f);
    return sum;
  }
  static double omega(const Case&, const Problem& p, int64_t d, int64_t f) {
    return (f < kColumns ? 1 : -1) * p.omega.get(d, f % kColumns);
  }
  Matrix features(const Case& c, const Problem& p, const RowBuffer& x) const {
    Matrix result = zeros(n, m);
    for (int64_t i = 0; i < n; ++i) {
      double square = 0;
      for (int64_t d = 0; d < kDim; ++d) square += std::pow(x.get(i, d), 2) / std::sqrt(kDim);
      for (int64_t f = 0; f < m; ++f) {
        result[i][f] = c.map == FeatureMap::kGiven
                           ? x.get(i, f)
                           : std::exp(projection(c, p, x, i, f) - square / 2) / std::sqrt(static_cast<double>(m));
      }
    }
    return result;
  }
  void through_map(const Case& c, const Problem& p, const RowBuffer& x, const Matrix& f, const Matrix& df,
                   Matrix& dx) const {
    for (int64_t i = 0; i < n; ++i) {
      for (int64_t d = 0; d < kDim; ++d) {
        for (int64_t a = 0; c.map != FeatureMap::kGiven && a < m; ++a) {
          dx[i][d] +=
              f[i][a] * df[i][a] * (omega(c, p, d, a) - x.get(i, d) * std::pow(kDim, -0.25)) * std::pow(kDim, -0.25);
        }
        if (c.map == FeatureMap::kGiven) dx[i][d] = df[i][d];
      }
    }
  }

  int64_t n, m;
  Matrix decay, fq, fk, out, dv, dq, dk, dlog_decay;
};

// Sums of products round in the compute type. Gradients are differences of terms of size 1, which hold out as it was
// rounded: they may cancel.
void expect_rows(const Case& c, const RowBuffer& got, const Exact::Matrix& expected, const char* name, bool gradient) {
  double largest = gradient ? 1 : 0;
  for (const auto& row : expected) {
    for (const double x : row) largest = std::max(largest, std::abs(x));
  }
  const double rounding = reference::unit_roundoff(c.dtype);
  const double allowed =
      (gradient ? 4 : 1.01) * rounding * largest + 64 * reference::unit_roundoff(compute_of(c.dtype)) * largest;
  for (size_t i = 0; i < expected.size(); ++i) {
    for (size_t d = 0; d < expected[i].size(); ++d) {
      const double value = got.get(static_cast<int64_t>(i), static_cast<int64_t>(d));
      EXPECT_LE(std::abs(value - expected[i][d]), allowed)
          << c.where << ": " << name << "[" << i << ", " << d << "] is " << value << ", expected " << expected[i][d];
    }
  }
}

TEST(LinearAttention, ForwardAndBackward) {
  for_each_case([](const Case& c) {
    const Problem p(c);
    const Exact exact(c, p);
    RowBuffer out(c.dtype, c.seqlen, kDimV), denominator(compute_of(c.dtype), c.seqlen, 1);
    cpu::linear_attention_forward({.shape = p.shape(c),
                                   .in = p.inputs(c),
                                   .out = Problem::rows_of(out, kDimV),
                                   .denominator = denominator.data()},
                                  kThreads);
    expect_rows(c, out, exact.out, "out", false);
    RowBuffer dq(c.dtype, c.seqlen, kDim), dk(c.dtype, c.seqlen, kDim), dv(c.dtype, c.seqlen, kDimV),
        dlog_decay(compute_of(c.dtype), c.seqlen, 1);
    cpu::linear_attention_backward({.shape = p.shape(c),
                                    .in = p.inputs(c),
                                    .out = Problem::rows_of(out, kDimV),
                                    .dout = Problem::rows_of(p.dout, kDimV),
                                    .denominator = denominator.data(),
                                    .dq = Problem::rows_of(dq, kDim),
                                    .dk = Problem::rows_of(dk, kDim),
                                    .dv = Problem::rows_of(dv, kDimV),
                                    .dlog_decay = c.decays ? dlog_decay.data() : nullptr},
                                   kThreads);
    expect_rows(c, dq, exact.dq, "dq", true);
    expect_rows(c, dk, exact.dk, "dk", true);
    expect_rows(c, dv, exact.dv, "dv", true);
    if (c.decays) expect_rows(c, dlog_decay, exact.dlog_decay, "dlog_decay", true);
  });
}

TEST(LinearAttention, NothingToDo) {
  for (const bool causal : {false, true}) {
    const LinearAttentionShape none{
        .causal = causal, .num_sequences = 2, .num_heads = 0, .head_dim = 1, .num_features = 1};
    LinearAttentionFwdParams forward;
    LinearAttentionBwdParams backward;
    forward.shape = backward.shape = none;
    cpu::linear_attention_forward(forward, kThreads);
    cpu::linear_attention_backward(backward, kThreads);
  }
}

TEST(LinearAttention, RefusesWhatDoesNotFit) {
  const auto refusal = [](LinearAttentionShape shape, const LinearAttentionInputs& in = {}) -> std::string {
    try {
      cpu::linear_attention_forward({.shape = shape, .in = in, .out = {}}, kThreads);
    } catch (const Error& error) {
      return error.what();
    }
    return "";
  };
  const int32_t offsets[] = {0, 3};
  const LinearAttentionShape good{.num_features = 4};
  LinearAttentionShape shape{.head_dim = 4, .num_features = 4};
  EXPECT_EQ(refusal(shape), "");
  shape.num_features = 6;
  EXPECT_NE(refusal(shape).find("features is 6, expected 4"), std::string::npos);
  shape = {.map = FeatureMap::kExpPaired, .head_dim = 4, .num_features = 3};
  EXPECT_NE(refusal(shape).find("even"), std::string::npos);
  shape = {.causal = true, .seqlen_q = 3, .head_dim = 4, .num_features = 4};
  EXPECT_NE(refusal(shape).find("seqlen_k is 0, expected 3"), std::string::npos);
  shape = {.head_dim = 4, .num_features = 4};
  LinearAttentionInputs decayed;
  decayed.log_decay = offsets;
  EXPECT_NE(refusal(shape, decayed).find("log_decay"), std::string::npos);
  shape = {.num_sequences = 1, .seqlen_q = 4, .seqlen_k = 4, .cu_seqlens = offsets, .head_dim = 4, .num_features = 4};
  EXPECT_NE(refusal(shape).find("cu_seqlens[1] is 3"), std::string::npos);
  EXPECT_NE(refusal(good).find("head_dim is 0"), std::string::npos);
}

}  // namespace
}  // namespace xformers::testing
