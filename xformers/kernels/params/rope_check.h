// Whether the sequences of rope_padded fit their queries and the caches. Looks at the offsets: on the host.
#pragma once

#include <string>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/params/rope.h"

namespace xformers {

[[noreturn]] inline void fail_sequence(const std::string& name, int64_t b, const std::string& got,
                                       const std::string& expected, const char* fix) {
  fail({.where = "rope_padded",
        .name = name + " of sequence " + std::to_string(b),
        .got = got,
        .expected = expected,
        .fix = fix});
}

inline void check_rope_sequences(const RopePaddedParams& p) {
  if (p.num_queries == 0 && p.batch == 0) return;
  for (int64_t b = 0; b < p.batch; ++b) {
    const int64_t begin = p.q_starts[b], end = p.q_starts[b + 1], start = p.k_starts[b], length = p.k_lengths[b];
    if (begin < 0 || end < begin || end > p.num_queries || (b == 0 && begin != 0)) {
      fail_sequence("queries", b, std::to_string(begin) + " to " + std::to_string(end),
                    "rising offsets from 0 to " + std::to_string(p.num_queries), "see the bias's q_seqinfo");
    }
    if (length < end - begin) {
      fail_sequence("key length", b, std::to_string(length), "at least its " + std::to_string(end - begin) + " queries",
                    "the keys in use include the new ones");
    }
    if (start < 0 || start + length > p.num_keys) {
      fail_sequence("keys", b, std::to_string(start) + " to " + std::to_string(start + length),
                    "a range in [0, " + std::to_string(p.num_keys) + "]", "see the bias's k_seqinfo");
    }
  }
  const int64_t covered = p.batch > 0 ? p.q_starts[p.batch] : 0;
  if (covered != p.num_queries) {
    fail({.where = "rope_padded",
          .name = "the last query offset",
          .got = std::to_string(covered),
          .expected = std::to_string(p.num_queries),
          .fix = "pass the bias that these queries were packed with"});
  }
}

}  // namespace xformers
