#include "tests/reference/attention.h"

#include <algorithm>
#include <cmath>
#include <limits>
#include <numbers>

#include "tests/reference/matrix.h"
#include "tests/reference/rounding.h"
#include "xformers/kernels/base/philox.h"

namespace xformers::reference {

bool AttentionProblem::visible(const Sequence& sequence, int64_t head, int64_t query, int64_t key) const {
  if (!shown.empty() && !shown[((sequence.batch * heads + head) * seqlen_q + query) * seqlen_k + key]) return false;
  const int64_t diagonal = bottom_right ? query + sequence.num_keys - sequence.num_queries : query;
  if (window_left && key < diagonal - *window_left) return false;
  if (window_right && key > diagonal + *window_right) return false;
  return true;
}

int64_t AttentionProblem::distance(const Sequence& sequence, int64_t query, int64_t key) const {
  const bool top_left = (window_left || window_right) && !bottom_right;
  return std::abs((top_left ? query : query + sequence.num_keys - sequence.num_queries) - key);
}

double AttentionProblem::dropout_factor(int64_t index, int64_t head, int64_t query, int64_t key) const {
  if (dropout_p == 0) return 1;
  if (dropout_p == 1) return 0;
  const PhiloxKey philox = philox_key(philox_seed, philox_offset);
  return attention_keeps(philox, drop_rule(dropout_p), index * heads + head, query, key) ? 1 / (1 - dropout_p) : 0;
}

namespace {

DType wide_of(DType dtype) { return dtype == DType::kFloat64 ? dtype : DType::kFloat32; }

// Every matrix of one head of one sequence; `round` is applied to each matrix when it is stored.
template <class Real, class Round>
struct Head {
  const AttentionProblem& problem;
  int64_t index, head;
  DType wide;  // of scores and sums in a kernel
  Round round;
  const Sequence& seq = problem.sequences[index];
  int64_t m = seq.num_queries, n = seq.num_keys;

  Matrix<Real> queries(const Values& x, int64_t dim) const {
    return tabulate<Real>(m, dim, [&](int64_t i, int64_t d) {
      const int64_t row = seq.batch * problem.seqlen_q + seq.first_query + i;
      return static_cast<Real>(x[(row * problem.heads + head) * dim + d]);
    });
  }
  Matrix<Real> keys(const Values& x, int64_t dim) const {
    return tabulate<Real>(n, dim, [&](int64_t i, int64_t d) {
      const int64_t row = seq.batch * problem.seqlen_k + seq.key_row(i);
      return static_cast<Real>(x[(row * problem.heads + head) * dim + d]);
    });
  }
  Matrix<Real> q = queries(problem.q, problem.head_dim);
  Matrix<Real> k = keys(problem.k, problem.head_dim);
  Matrix<Real> v = keys(problem.v, problem.head_dim_v);
  Matrix<Real> dout = queries(problem.dout, problem.head_dim_v);

  size_t row_index(int64_t i) const {
    return (seq.batch * problem.heads + head) * problem.seqlen_q + seq.first_query + i;
  }
  size_t bias_index(int64_t i, int64_t j) const {
    return ((index * problem.heads + head) * problem.bias_rows + i) * problem.bias_cols + j;
  }
  size_t dbias_index(int64_t i, int64_t j) const {
    const int64_t heads = problem.one_bias_head ? 1 : problem.heads;
    const int64_t slice = (problem.one_bias ? 0 : index) * heads + (problem.one_bias_head ? 0 : head);
    return (slice * problem.bias_rows + i) * problem.bias_cols + j;
  }
  size_t number_index() const { return index * problem.heads + head; }
  bool sinks() const { return !problem.sinks.empty(); }
  Real sink() const { return sinks() ? problem.sinks[number_index()] : -std::numeric_limits<Real>::infinity(); }

  Matrix<Real> rounded(Matrix<Real> x) const {
    for (Real& element : x.data) element = round(element);
    return x;
  }

  // cap_derivative: what a softcap multiplies dS by.
  Matrix<Real> scores(Matrix<Real>* cap_derivative = nullptr) const {
    const auto store = [&](Real x) { return problem.held_scores ? x : round(x); };
    if (cap_derivative) *cap_derivative = tabulate<Real>(m, n, [](int64_t, int64_t) { return Real{1}; });
    Matrix<Real> s = product(q, transpose(k));
    for (int64_t i = 0; i < m; ++i) {
      for (int64_t j = 0; j < n; ++j) {
        s(i, j) = store(store(s(i, j)) * static_cast<Real>(problem.scale));
        if (problem.softcap > 0) {
          const Real cap = static_cast<Real>(problem.softcap), t = store(std::tanh(s(i, j) / cap));
          s(i, j) = store(cap * t);
          if (cap_derivative) (*cap_derivative)(i, j) = 1 - t * t;
        }
        if (!problem.slopes.empty()) {
          const Real slope = static_cast<Real>(problem.slopes[number_index()]);
          s(i, j) = store(s(i, j) - slope * static_cast<Real>(problem.distance(seq, i, j)));
        }
        if (!problem.bias.empty()) {
          const Real added = static_cast<Real>(problem.bias[bias_index(i, j)]);
          s(i, j) = std::isinf(added) ? added : store(s(i, j) + added);
        }
        if (problem.held_scores)
          s(i, j) = wide == DType::kFloat64 ? static_cast<double>(s(i, j)) : static_cast<float>(s(i, j));
        if (!problem.visible(seq, head, i, j)) s(i, j) = -std::numeric_limits<Real>::infinity();
      }
    }
    return s;
  }

  // Softmax of each row, and its log-sum-exp; a row that sees nothing has zeros and -inf (or its sink), one with a NaN
  // is NaN.
  Matrix<Real> softmax(const Matrix<Real>& s, std::vector<Real>& lse) const {
    const Real infinity = std::numeric_limits<Real>::infinity();
    lse.assign(m, -infinity);
    Matrix<Real> p(m, n);
    for (int64_t i = 0; i < m; ++i) {
      Real largest = -infinity, sum = 0;
      bool empty = true;
      for (int64_t j = 0; j < n; ++j) largest = std::max(largest, s(i, j)), empty = empty && s(i, j) == -infinity;
      if (empty) {
        lse[i] = sink();
        if (std::isnan(sink())) std::fill_n(&p(i, 0), n, sink());
        continue;
      }
      const auto hidden = [&](int64_t j) { return s(i, j) == -infinity; };
      largest = std::max(largest, sink());
      if (sinks()) sum = sink() == -infinity ? Real{0} : std::exp(sink() - largest);
      for (int64_t j = 0; j < n; ++j) sum += p(i, j) = hidden(j) ? 0 : std::exp(s(i, j) - largest);
      for (int64_t j = 0; j < n; ++j) p(i, j) = hidden(j) ? 0 : round(p(i, j) / sum);
      lse[i] = largest + std::log(sum);
    }
    return p;
  }

  Matrix<Real> dropout_factors() const {
    return tabulate<Real>(
        m, n, [&](int64_t i, int64_t j) { return static_cast<Real>(problem.dropout_factor(index, head, i, j)); });
  }

  Matrix<Real> times(const Matrix<Real>& a, const Matrix<Real>& b) const {
    return tabulate<Real>(a.rows, a.cols, [&](int64_t i, int64_t j) { return round(a(i, j) * b(i, j)); });
  }

  Real dlse(int64_t i) const { return problem.dlse.empty() ? Real{0} : static_cast<Real>(problem.dlse[row_index(i)]); }
};

AttentionResult empty_result(const AttentionProblem& p, double lse) {
  AttentionResult result;
  result.out.assign(p.batch * p.seqlen_q * p.heads * p.head_dim_v, 0);
  result.lse.assign(p.batch * p.heads * p.seqlen_q, lse);
  result.dq.assign(p.q.size(), 0);
  result.dk.assign(p.k.size(), 0);
  result.dv.assign(p.v.size(), 0);
  const size_t sharing = (p.one_bias ? p.sequences.size() : 1) * (p.one_bias_head ? p.heads : 1);
  result.dbias.assign(p.bias.size() / std::max<size_t>(sharing, 1), 0);
  result.dslopes.assign(p.slopes.size(), 0);
  result.dsinks.assign(p.sinks.size(), 0);
  return result;
}

template <class Real, class Round>
class Writer {
 public:
  Writer(const Head<Real, Round>& head, AttentionResult& result) : head_(head), result_(result) {}

  void queries(Values& to, const Matrix<Real>& from) const {
    rows(to, from, head_.problem.seqlen_q, [&](int64_t i) { return head_.seq.first_query + i; });
  }
  void keys(Values& to, const Matrix<Real>& from) const {
    rows(to, from, head_.problem.seqlen_k, [&](int64_t i) { return head_.seq.key_row(i); });
  }
  void lse(const std::vector<Real>& from) const {
    for (int64_t i = 0; i < head_.m; ++i) result_.lse[head_.row_index(i)] = static_cast<double>(from[i]);
  }
  // add(sum, x): how elements that several sequences or heads have in common are put together.
  template <class Add>
  void dbias(const Matrix<Real>& from, const Add& add) const {
    if (result_.dbias.empty()) return;
    for (int64_t i = 0; i < head_.m; ++i) {
      for (int64_t j = 0; j < head_.n; ++j) {
        double& sum = result_.dbias[head_.dbias_index(i, j)];
        sum = add(sum, static_cast<double>(from(i, j)));
      }
    }
  }

 private:
  template <class RowOf>
  void rows(Values& to, const Matrix<Real>& from, int64_t seqlen, const RowOf& row_of) const {
    for (int64_t i = 0; i < from.rows; ++i) {
      for (int64_t d = 0; d < from.cols; ++d) {
        to[((head_.seq.batch * seqlen + row_of(i)) * head_.problem.heads + head_.head) * from.cols + d] =
            static_cast<double>(from(i, d));
      }
    }
  }
  const Head<Real, Round>& head_;
  AttentionResult& result_;
};

template <class Real, class Round>
AttentionResult evaluate(const AttentionProblem& problem, DType dtype, const Round& round) {
  AttentionResult result = empty_result(problem, -std::numeric_limits<double>::infinity());
  const Real scale = static_cast<Real>(problem.scale);
  for (int64_t index = 0; index < static_cast<int64_t>(problem.sequences.size()); ++index) {
    for (int64_t head = 0; head < problem.heads; ++head) {
      const Head<Real, Round> h{problem, index, head, wide_of(dtype), round};
      const Writer<Real, Round> write(h, result);

      std::vector<Real> lse;
      Matrix<Real> cap_derivative(0, 0);
      const Matrix<Real> p = h.softmax(h.scores(&cap_derivative), lse);
      const Matrix<Real> factors = h.dropout_factors();
      const Matrix<Real> dropped = h.times(p, factors);
      write.lse(lse);
      write.queries(result.out, h.rounded(product(dropped, h.v)));

      write.keys(result.dv, h.rounded(product(transpose(dropped), h.dout)));
      const Matrix<Real> dp = h.times(h.rounded(product(h.dout, transpose(h.v))), factors);
      Matrix<Real> ds(h.m, h.n);
      Real dslope = 0, dsink = 0;
      for (int64_t i = 0; i < h.m; ++i) {
        Real delta = -h.dlse(i);
        for (int64_t j = 0; j < h.n; ++j) delta += p(i, j) * dp(i, j);
        for (int64_t j = 0; j < h.n; ++j) {
          ds(i, j) = problem.visible(h.seq, h.head, i, j) ? round(p(i, j) * (dp(i, j) - delta)) : 0;
          dslope -= ds(i, j) * static_cast<Real>(problem.distance(h.seq, i, j));
        }
        if (!std::isinf(h.sink())) dsink -= round(std::exp(h.sink() - lse[i])) * delta;
      }
      write.dbias(ds, [](double sum, double x) { return sum + x; });
      if (!result.dslopes.empty()) result.dslopes[h.number_index()] = static_cast<double>(dslope);
      if (h.sinks()) result.dsinks[h.number_index()] = static_cast<double>(dsink);
      for (size_t i = 0; i < ds.data.size(); ++i) ds.data[i] = round(ds.data[i] * round(cap_derivative.data[i]));
      for (Real& x : ds.data) x = round(x * scale);
      write.queries(result.dq, h.rounded(product(ds, h.k)));
      write.keys(result.dk, h.rounded(product(transpose(ds), h.q)));
    }
  }
  return result;
}

}  // namespace

AttentionResult exact(const AttentionProblem& problem, DType dtype) {
  if (dtype == DType::kFloat64) return evaluate<long double>(problem, dtype, [](long double x) { return x; });
  return evaluate<double>(problem, dtype, [](double x) { return x; });
}

AttentionResult plain(const AttentionProblem& problem, DType dtype) {
  switch (dtype) {
    case DType::kFloat64: return evaluate<double>(problem, dtype, [](double x) { return x; });
    case DType::kFloat32: return evaluate<float>(problem, dtype, [](float x) { return x; });
    case DType::kBFloat16:
      return evaluate<float>(problem, dtype, [](float x) { return from_bfloat16_bits(to_bfloat16_bits(x)); });
    case DType::kFloat16:
      return evaluate<float>(problem, dtype, [](float x) { return from_float16_bits(to_float16_bits(x)); });
  }
  return {};
}

AttentionResult roundings(const AttentionProblem& problem, DType dtype) {
  const double unit = unit_roundoff(dtype);
  const double wide_unit = unit_roundoff(wide_of(dtype));
  AttentionResult result = empty_result(problem, wide_unit);
  const auto keep = [](double x) { return x; };
  for (int64_t index = 0; index < static_cast<int64_t>(problem.sequences.size()); ++index) {
    for (int64_t head = 0; head < problem.heads; ++head) {
      const Head<double, decltype(keep)> h{problem, index, head, wide_of(dtype), keep};
      const Writer<double, decltype(keep)> write(h, result);

      std::vector<double> lse;
      Matrix<double> cap_derivative(0, 0);
      const Matrix<double> p = h.softmax(h.scores(&cap_derivative), lse);
      const Matrix<double> factors = h.dropout_factors();
      const Matrix<double> dropped = h.times(p, factors);

      // Of a weight: its own rounding, its score's, and in backward that of the lse, all relative to the weight. Held
      // scores from 2^10 on are exact, and their lse has a second number: what is rounded then is log(weight), the
      // difference of the three, once per subtraction (score - lse, - lse_low).
      const auto inexact = [&](double x) { return problem.held_scores && x > wide_unit * 1024 ? 0 : x; };
      const auto difference = [&](double weight) {
        return wide_unit * std::numbers::sqrt2 * (weight > 0 ? std::max(1.0, -std::log(weight)) : 1);
      };
      std::vector<double> lse_roundings(lse.size());
      const Matrix<double> score_sizes = product_sizes(h.q, transpose(h.k));
      Matrix<double> forward(h.m, h.n), backward(h.m, h.n);
      for (int64_t i = 0; i < h.m; ++i) {
        const double stored = wide_unit * (std::isinf(lse[i]) ? 1 : std::max(1.0, std::abs(lse[i])));
        double summed = 0;
        for (int64_t j = 0; j < h.n; ++j) {
          // A cap is held in two roundings, tanh and its multiple, and a distance in one of its own.
          const double capped = problem.softcap > 0 ? 2 * problem.softcap * std::sqrt(1 - cap_derivative(i, j)) : 0;
          const double tilt =
              problem.slopes.empty() ? 0 : problem.slopes[h.number_index()] * problem.distance(h.seq, i, j);
          forward(i, j) = unit +
                          inexact(wide_unit * std::abs(problem.scale) * score_sizes(i, j) * cap_derivative(i, j)) +
                          wide_unit * (capped + std::abs(tilt));
          backward(i, j) =
              forward(i, j) + (problem.held_scores ? std::max(difference(p(i, j)), inexact(stored)) : stored);
          summed += std::pow(p(i, j) * forward(i, j), 2);
        }
        lse_roundings[i] = stored + std::sqrt(summed);
      }
      write.lse(lse_roundings);
      // Distances make many weights subnormal: those may be taken for 0.
      const double normal = wide_of(dtype) == DType::kFloat64 ? 0x1p-1022 : 0x1p-126,
                   smallest = problem.slopes.empty() ? 0 : normal;
      const auto of_weights = [&](const Matrix<double>& relative) {
        Matrix<double> roundings = h.times(dropped, relative);
        for (double& x : roundings.data) x += smallest;
        return roundings;
      };
      write.queries(result.out, root_sum_squares(of_weights(forward), h.v));
      write.keys(result.dv, root_sum_squares(transpose(of_weights(backward)), h.dout));

      const Matrix<double> out = product(dropped, h.v);
      const Matrix<double> dp_sizes = product_sizes(h.dout, transpose(h.v));
      Matrix<double> ds(h.m, h.n), sizes(h.m, h.n);
      double dslope_squares = 0, dsink_squares = 0;
      for (int64_t i = 0; i < h.m; ++i) {
        double delta = 0, delta_squares = h.dlse(i) * h.dlse(i);
        for (int64_t d = 0; d < out.cols; ++d) {
          delta += out(i, d) * h.dout(i, d);
          delta_squares += std::pow(out(i, d) * h.dout(i, d), 2);
        }
        delta_squares = std::max(delta_squares, delta * delta);
        for (int64_t j = 0; j < h.n; ++j) {
          const double size = std::sqrt(std::pow(dp_sizes(i, j) * factors(i, j), 2) + delta_squares);
          sizes(i, j) = p(i, j) * size;
          ds(i, j) = (backward(i, j) * p(i, j) + smallest) * size + smallest;  // both may be taken for 0
          dslope_squares += std::pow(ds(i, j) * static_cast<double>(problem.distance(h.seq, i, j)), 2);
        }
        if (std::isinf(h.sink())) continue;
        const double stored = wide_unit * (std::isinf(lse[i]) ? 1 : std::max(1.0, std::abs(lse[i])));
        dsink_squares += std::pow((unit + stored) * std::exp(h.sink() - lse[i]), 2) * delta_squares;
      }
      write.dbias(ds, [](double sum, double x) { return std::hypot(sum, x); });
      if (!result.dslopes.empty()) result.dslopes[h.number_index()] = std::sqrt(dslope_squares);
      if (h.sinks()) result.dsinks[h.number_index()] = std::sqrt(dsink_squares);
      // 1 - tanh^2 is off by two roundings of 1.
      const double of_cap = problem.softcap > 0 ? 2 * wide_unit : 0;
      for (size_t i = 0; i < ds.data.size(); ++i) {
        ds.data[i] = problem.scale * std::hypot(ds.data[i] * cap_derivative.data[i], of_cap * sizes.data[i]);
      }
      Matrix<double> dq = root_sum_squares(ds, h.k);
      // delta is one number for all keys of a row. Its error, from the roundings of out and of the weights in it, would
      // average out over keys that point everywhere, as they do in ordinary cases; keys that are alike add it up.
      if (problem.held_scores) {
        const Matrix<double> seen = product(p, h.k);
        for (int64_t i = 0; i < h.m; ++i) {
          double squares = 0;
          for (int64_t d = 0; d < out.cols; ++d) squares += std::pow(unit * out(i, d) * h.dout(i, d), 2);
          for (int64_t j = 0; j < h.n; ++j) squares += std::pow(forward(i, j) * dropped(i, j) * dp_sizes(i, j), 2);
          for (int64_t d = 0; d < dq.cols; ++d) {
            dq(i, d) = std::hypot(dq(i, d), problem.scale * std::sqrt(squares) * seen(i, d));
          }
        }
      }
      write.queries(result.dq, dq);
      write.keys(result.dk, root_sum_squares(transpose(ds), h.q));
    }
  }
  return result;
}

}  // namespace xformers::reference
