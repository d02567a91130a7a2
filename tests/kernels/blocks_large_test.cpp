// Large results go past the caches, in whole lines where rows allow it: they must be those of the same rows in smaller
// calls, which do not. Widths that begin rows anywhere in a line.
#include <array>
#include <cstring>
#include <deque>
#include <functional>

#include "tests/kernels/blocks_support.h"
#include "xformers/kernels/cpu/base/blocks.h"
#include "xformers/kernels/cpu/bias_act_dropout/bias_act_dropout_cpu.h"
#include "xformers/kernels/cpu/indexing/indexing_cpu.h"
#include "xformers/kernels/cpu/norm/norm_cpu.h"
#include "xformers/kernels/cpu/rope/rope_cpu.h"
#include "xformers/kernels/cpu/softmax/softmax_cpu.h"
#include "xformers/kernels/cpu/swiglu/gate_cpu.h"

namespace xformers::testing {
namespace {

const cpu::Threads kThreads{2, nullptr};

// Three inputs and the room for the results of as many rows as make a large call.
struct Matrices {
  Matrices(DType dtype_arg, int64_t width_arg)
      : dtype(dtype_arg),
        width(width_arg),
        rows(cpu::kStreamBytes / (width * static_cast<int64_t>(size_of(dtype))) + 2),
        a(dtype, rows, width),
        b(dtype, rows, width),
        c(dtype, rows, width),
        weight(compute_of(dtype), 1, width) {
    for (RowBuffer* buffer : {&a, &b, &c, &weight}) buffer->randomise(++seed);
  }
  // Row `first` of an input.
  char* at(const RowBuffer& buffer, int64_t first) const {
    return static_cast<char*>(buffer.data()) + first * width * static_cast<int64_t>(size_of(dtype));
  }

  DType dtype;
  int64_t width, rows;
  RowBuffer a, b, c, weight;
  uint64_t seed = 0;
};

// run(first, count, results): rows [first, first + count) into the first `count` rows of the results, which have
// `result_width` elements.
using Run = std::function<void(int64_t first, int64_t count, char* const* results)>;

void expect_same(const RowBuffer& large, int64_t offset, const RowBuffer& small, DType dtype,
                 const std::string& where) {
  const size_t size = size_of(dtype);
  if (std::memcmp(static_cast<char*>(large.data()) + offset * size, small.data(), small.count() * size) == 0) return;
  for (int64_t i = 0; i < small.count(); ++i) {  // the compiler may have joined products and sums in one of them
    const double got = large.get(offset + i), expected = small.get(i), size_of_terms = std::abs(expected) + 4;
    ASSERT_NEAR(got, expected,
                2 * reference::unit_roundoff(dtype) * std::abs(expected) +
                    16 * reference::unit_roundoff(compute_of(dtype)) * size_of_terms)
        << where << " at " << i;
  }
}

void check(const Matrices& m, int results, int64_t result_width, bool also_second_half, const std::string& where,
           const Run& run) {
  std::deque<RowBuffer> large;
  std::array<char*, 3> data{};
  const auto make = [&](std::deque<RowBuffer>& buffers, int64_t rows) {
    for (int k = 0; k < results; ++k) {
      buffers.emplace_back(m.dtype, rows, result_width);
      data[k] = static_cast<char*>(buffers[k].data());
    }
  };
  make(large, m.rows);
  run(0, m.rows, data.data());
  const int64_t half = m.rows / 2;
  for (int64_t first = 0; first < (also_second_half ? m.rows : half); first += half) {
    std::deque<RowBuffer> small;
    const int64_t count = std::min(half, m.rows - first);
    make(small, count);
    run(first, count, data.data());
    for (int k = 0; k < results; ++k) expect_same(large[k], first * result_width, small[k], m.dtype, where);
  }
}

template <class Body>
void for_each_matrix(const Body& body) {
  for (DType dtype : kBlockDTypes) {
    for (int64_t width : {250, 2736}) {
      const Matrices m(dtype, width);
      for_each_isa([&](const std::string& isa) {
        if (isa == "avx512_fp16" || isa == "amx") return;  // the vectors of avx512_bf16
        body(m, isa + " " + name_of(dtype) + " width " + std::to_string(width));
      });
    }
  }
}

TEST(LargeBlocks, Norm) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    for (NormKind kind : {NormKind::kRms, NormKind::kLayer}) {
      check(m, 1, m.width, true, where, [&](int64_t first, int64_t count, char* const* results) {
        cpu::norm_forward({.shape = {m.dtype, kind, count, m.width, 1e-5},
                           .x = {m.at(m.a, first), m.width},
                           .increment = {},
                           .weight = m.weight.data(),
                           .bias = kind == NormKind::kLayer ? m.weight.data() : nullptr,
                           .out = {results[0], m.width}},
                          kThreads);
      });
      check(m, 1, m.width, true, where + " backward", [&](int64_t first, int64_t count, char* const* results) {
        RowBuffer dweight(compute_of(m.dtype), 1, m.width);
        cpu::norm_backward({.shape = {m.dtype, kind, count, m.width, 1e-5},
                            .x = {m.at(m.a, first), m.width},
                            .dout = {m.at(m.b, first), m.width},
                            .weight = m.weight.data(),
                            .dx = {results[0], m.width},
                            .dweight = dweight.data(),
                            .dbias = nullptr},
                           kThreads);
      });
    }
  });
}

TEST(LargeBlocks, Gate) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    const int64_t width = m.width;
    check(m, 1, width, true, where, [&](int64_t first, int64_t count, char* const* results) {
      GateFwdParams p;
      p.dtype = m.dtype, p.rows = count, p.width = width;
      p.x1 = {m.at(m.a, first), width};
      p.x2 = {m.at(m.b, first), width};
      p.h = {results[0], width};
      cpu::gate_forward(p, kThreads);
    });
    for (bool with_h : {false, true}) {  // dx1 and dx2 side by side
      check(m, with_h ? 2 : 1, 2 * width, true, where + " backward",
            [&](int64_t first, int64_t count, char* const* results) {
              GateBwdParams p;
              p.dtype = m.dtype, p.rows = count, p.width = width;
              p.x1 = {m.at(m.a, first), width};
              p.x2 = {m.at(m.b, first), width};
              p.dh = {m.at(m.c, first), width};
              p.dx1 = {results[0], 2 * width};
              p.dx2 = {results[0] + width * static_cast<int64_t>(size_of(m.dtype)), 2 * width};
              if (with_h) {
                std::memset(results[1], 0, count * 2 * width * size_of(m.dtype));
                p.h = {results[1], 2 * width};
              }
              cpu::gate_backward(p, kThreads);
            });
    }
  });
}

TEST(LargeBlocks, Softmax) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    for (bool log : {false, true}) {
      const auto shape = [&](int64_t count) {
        return SoftmaxShape{.dtype = m.dtype, .log = log, .rows = count, .width = m.width};
      };
      check(m, 1, m.width, true, where, [&](int64_t first, int64_t count, char* const* results) {
        cpu::softmax_forward({.shape = shape(count), .x = m.at(m.a, first), .mask = {}, .out = results[0]}, kThreads);
      });
      check(m, 1, m.width, true, where + " backward", [&](int64_t first, int64_t count, char* const* results) {
        cpu::softmax_backward(
            {.shape = shape(count), .out = m.at(m.a, first), .dout = m.at(m.b, first), .dx = results[0]}, kThreads);
      });
    }
    check(m, 1, m.width, false, where + " causal", [&](int64_t first, int64_t count, char* const* results) {
      const SoftmaxShape shape{.dtype = m.dtype, .causal = true, .rows = count, .width = m.width};
      cpu::softmax_forward({.shape = shape, .x = m.at(m.a, first), .mask = {}, .out = results[0]}, kThreads);
    });
  });
}

TEST(LargeBlocks, BiasActDropout) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    for (double p : {0.0, 0.3, 1.0}) {
      const auto shape = [&](int64_t count) {
        return BiasActDropoutShape{m.dtype, count, m.width, Activation::kGelu, {.p = p, .philox_seed = 5}};
      };
      // Draws belong to rows counted from the first.
      check(m, 1, m.width, p == 0, where, [&](int64_t first, int64_t count, char* const* results) {
        cpu::bias_act_dropout_forward({.shape = shape(count),
                                       .x = {m.at(m.a, first), m.width},
                                       .bias = m.weight.data(),
                                       .residual = {m.at(m.b, first), m.width},
                                       .out = {results[0], m.width}},
                                      kThreads);
      });
      for (bool sums : {false, true}) {
        check(m, 1, m.width, p == 0, where + " backward", [&](int64_t first, int64_t count, char* const* results) {
          RowBuffer dbias(compute_of(m.dtype), 1, m.width);
          cpu::bias_act_dropout_backward({.shape = shape(count),
                                          .x = {m.at(m.a, first), m.width},
                                          .bias = m.weight.data(),
                                          .dout = {m.at(m.b, first), m.width},
                                          .dx = {results[0], m.width},
                                          .dbias = sums ? dbias.data() : nullptr},
                                         kThreads);
        });
      }
    }
  });
}

TEST(LargeBlocks, Rotary) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    for (bool adjacents : {true, false}) {
      check(m, 1, m.width, false, where, [&](int64_t first, int64_t count, char* const* results) {
        RotaryParams p;
        p.dtype = m.dtype, p.outer = 1, p.seqlen = count, p.head_dim = m.width;
        p.x = m.at(m.a, first);
        p.out = results[0];
        p.x_seq_stride = p.out_seq_stride = m.width;
        p.layout.adjacents = adjacents;
        cpu::rotary(p, kThreads);
      });
    }
  });
}

TEST(LargeBlocks, Indexing) {
  for_each_matrix([](const Matrices& m, const std::string& where) {
    const int64_t half = m.rows / 2;
    std::vector<int64_t> index(m.rows);  // the first half of the places points to the first half of the rows
    for (int64_t i = 0; i < m.rows; ++i) index[i] = i >= half ? i : i % 7 == 0 ? i / 2 : half - 1 - i;
    check(m, 1, m.width, false, where, [&](int64_t first, int64_t count, char* const* results) {
      const RowSelection selection{results[0], m.width, count, m.width, index.data(), count, m.at(m.a, first)};
      cpu::index_select_cat_backward({.dtype = m.dtype, .selections = &selection, .num_selections = 1}, kThreads);
    });
    RowBuffer dscaling(compute_of(m.dtype), 1, m.width);
    for (int64_t i = 0; i < m.rows; ++i) index[i] = i;
    for (bool sums : {false, true}) {
      check(m, 1, m.width, true, where + " scaled", [&](int64_t first, int64_t count, char* const* results) {
        ScaledIndexAddBwdParams p;
        p.dtype = m.dtype, p.rows = p.num_indices = count, p.middle = 1, p.width = m.width;
        p.dout = {m.at(m.a, first), m.width, m.width};
        p.source = {m.at(m.b, first), m.width, m.width};
        p.dsource = {results[0], m.width, m.width};
        p.index = index.data();
        p.scaling = m.weight.data();
        p.scaling_dtype = compute_of(m.dtype);
        p.dscaling = sums ? dscaling.data() : nullptr;
        cpu::scaled_index_add_backward(p, kThreads);
      });
    }
  });
}

}  // namespace
}  // namespace xformers::testing
