// Bands and sequences against their definitions: every corner of small sizes, and windows up to the ends of int64.
#include "xformers/kernels/params/band.h"

#include <gtest/gtest.h>

#include <cstdint>
#include <limits>
#include <vector>

namespace xformers::testing {
namespace {

constexpr int64_t kMost = std::numeric_limits<int64_t>::max();

// MaskBand's text, in integers that nothing overflows.
bool sees(const MaskBand& mask, int64_t seqlen_q, int64_t seqlen_k, int64_t query, int64_t key) {
  const __int128 diagonal = __int128{query} + (mask.bottom_right ? seqlen_k - seqlen_q : 0);
  return (mask.window_left == kUnbounded || key >= diagonal - mask.window_left) &&
         (mask.window_right == kUnbounded || key <= diagonal + mask.window_right);
}

template <class Index>
class Bands : public ::testing::Test {};
using Indices = ::testing::Types<int, int64_t>;
TYPED_TEST_SUITE(Bands, Indices);

template <class Index>
void check_ranges(const MaskBand& mask, Index seqlen_q, Index seqlen_k) {
  const BandOf<Index> band(mask, {0, 0, 0, 0, seqlen_q, seqlen_k});
  const auto expected = [&](Index query, Index key) { return sees(mask, seqlen_q, seqlen_k, query, key); };
  for (Index first = 0; first < seqlen_q; ++first) {
    for (Index key = 0; key < seqlen_k; ++key) ASSERT_EQ(band.visible(first, key), expected(first, key));
    ASSERT_FALSE(band.visible(first, seqlen_k));
    for (Index end = first + 1; end <= seqlen_q; ++end) {
      std::vector<bool> any(seqlen_k), all(seqlen_k, true);
      for (Index query = first; query < end; ++query) {
        for (Index key = 0; key < seqlen_k; ++key) {
          any[key] = any[key] || expected(query, key);
          all[key] = all[key] && expected(query, key);
        }
      }
      const RangeOf<Index> range = band.key_range({first, end}), full = band.full_range({first, end});
      for (Index key = 0; key < seqlen_k; ++key) {
        ASSERT_EQ(key >= range.begin && key < range.end, any[key]);
        ASSERT_EQ(key >= full.begin && key < full.end, all[key]);
        for (Index stop = key + 1; stop <= seqlen_k; ++stop) {
          bool every = true;
          for (Index at = key; at < stop; ++at) every = every && all[at];
          ASSERT_EQ(band.is_full({first, end}, {key, stop}), every);
        }
      }
    }
  }
  for (Index first = 0; first < seqlen_k; ++first) {
    for (Index end = first + 1; end <= seqlen_k; ++end) {
      const RangeOf<Index> range = band.query_range({first, end});
      for (Index query = 0; query < seqlen_q; ++query) {
        bool any = false;
        for (Index key = first; key < end; ++key) any = any || expected(query, key);
        ASSERT_EQ(query >= range.begin && query < range.end, any);
      }
    }
  }
}

TYPED_TEST(Bands, SeeWhatTheirDefinitionSays) {
  for (int64_t left : {kUnbounded, int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{6}, kMost - 1, kMost}) {
    for (int64_t right : {kUnbounded, int64_t{0}, int64_t{1}, int64_t{2}, int64_t{3}, int64_t{6}, kMost - 1, kMost}) {
      for (bool bottom_right : {false, true}) {
        for (TypeParam seqlen_q = 0; seqlen_q <= 5; ++seqlen_q) {
          for (TypeParam seqlen_k = 0; seqlen_k <= 5; ++seqlen_k) {
            check_ranges<TypeParam>({left, right, bottom_right}, seqlen_q, seqlen_k);
            if (::testing::Test::HasFatalFailure()) {
              FAIL() << "window " << left << ", " << right << (bottom_right ? " from the bottom right, " : ", ")
                     << seqlen_q << " queries, " << seqlen_k << " keys";
            }
          }
        }
      }
    }
  }
}

// The longest sequences, and windows about as long as them or as large as numbers get.
TYPED_TEST(Bands, HoldTheLongestSequences) {
  const int64_t longest = kMaxSeqlenOf<TypeParam> - 1;
  const std::vector<int64_t> lengths{1, 2, longest / 2, longest - 1, longest};
  for (int64_t left : {kUnbounded, int64_t{0}, longest - 1, longest, longest + 1, 2 * longest, kMost - 1, kMost}) {
    for (int64_t right : {kUnbounded, int64_t{0}, longest - 1, longest, longest + 1, 2 * longest, kMost - 1, kMost}) {
      for (int64_t seqlen_q : lengths) {
        for (int64_t seqlen_k : lengths) {
          for (bool bottom_right : {false, true}) {
            const MaskBand mask{left, right, bottom_right};
            const auto q = static_cast<TypeParam>(seqlen_q), k = static_cast<TypeParam>(seqlen_k);
            const BandOf<TypeParam> band(mask, {0, 0, 0, 0, q, k});
            for (TypeParam query : {TypeParam{0}, static_cast<TypeParam>(q / 2), static_cast<TypeParam>(q - 1)}) {
              const RangeOf<TypeParam> seen = band.key_range({query, query + 1});
              for (TypeParam key : {TypeParam{0}, static_cast<TypeParam>(k / 2), static_cast<TypeParam>(k - 1)}) {
                const bool expected = sees(mask, q, k, query, key);
                const RangeOf<TypeParam> by = band.query_range({key, key + 1});
                EXPECT_EQ(band.visible(query, key), expected);
                EXPECT_EQ(key >= seen.begin && key < seen.end, expected);
                EXPECT_EQ(query >= by.begin && query < by.end, expected);
                EXPECT_EQ(band.is_full({query, query + 1}, {key, key + 1}), expected);
              }
            }
          }
        }
      }
    }
  }
}

// Offsets of any value, in any order: every sequence lies in the tensors, and so does every key's row.
TYPED_TEST(Bands, OfSequencesLieInTheTensors) {
  constexpr int32_t kLow = std::numeric_limits<int32_t>::min(), kHigh = std::numeric_limits<int32_t>::max();
  const std::vector<int32_t> values{kLow, -1, 0, 2, 3, 7, 9, kHigh};
  AttentionShape shape;
  shape.batch = 1, shape.seqlen_q = 7;
  for (int64_t seqlen_k : {0, 1, 7}) {
    shape.seqlen_k = seqlen_k;
    for (int32_t begin : values) {
      for (int32_t end : values) {
        for (int32_t used : values) {
          for (int64_t page_size : {0, 1, 3}) {
            for (bool with_used : {true, false}) {
              if (page_size > 0 && !with_used) continue;
              const int32_t offsets[] = {begin, end}, pages[] = {2, end, begin, 1, 2};
              SeqLayout layout{1, offsets, offsets, with_used ? &used : nullptr, {}};
              if (page_size > 0) layout.pages = {pages, 5, 5, page_size};
              const auto sequence = sequence_at<TypeParam>(shape, layout, 0);
              ASSERT_GE(sequence.q_begin, 0);
              ASSERT_GE(sequence.seqlen_q, 0);
              ASSERT_LE(sequence.q_begin + sequence.seqlen_q, shape.seqlen_q);
              ASSERT_GE(sequence.k_begin, 0);
              ASSERT_GE(sequence.seqlen_k, 0);
              ASSERT_LE(sequence.k_begin + sequence.seqlen_k, page_size > 0 ? 5 * page_size : shape.seqlen_k);
              for (TypeParam key = 0; key < sequence.seqlen_k; ++key) {
                const RowRun run = rows_from(shape, layout, sequence, key, sequence.seqlen_k);
                ASSERT_GE(run.count, 1);
                ASSERT_LE(key + run.count, sequence.seqlen_k);
                for (TypeParam at = 0; at < run.count; ++at) {
                  const int64_t row = key_row(shape, layout, sequence, static_cast<TypeParam>(key + at));
                  ASSERT_EQ(row, run.row + at);
                  ASSERT_GE(row, 0);
                  ASSERT_LT(row, shape.seqlen_k);
                }
              }
            }
          }
        }
      }
    }
  }
}

// On the host as on the device, also where nothing runs.
constexpr BandOf<int> kCausal({kUnbounded, 0, true}, {0, 0, 0, 0, 3, 5});
static_assert(kCausal.visible(0, 2) && !kCausal.visible(0, 3) && kCausal.key_range({1, 2}).end == 4);

}  // namespace
}  // namespace xformers::testing
