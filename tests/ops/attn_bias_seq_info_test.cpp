// Where sequences lie: offsets, lengths, splitting, moving.
#include <gtest/gtest.h>

#include "tests/ops/bias_check.h"

namespace xformers::ops {
namespace {

using ::testing::IsSubstring;

at::Tensor int32(at::IntArrayRef numbers) { return at::tensor(numbers, at::kInt); }

TEST(SeqLenInfo, Offsets) {
  const SeqLenInfo info = SeqLenInfo::from_seqlens({2, 3, 2});
  EXPECT_EQ(info.seqstart_host, (std::vector<int64_t>{0, 2, 5, 7}));
  EXPECT_TRUE(at::equal(info.seqstart, int32({0, 2, 5, 7})));
  EXPECT_EQ(info.max_seqlen, 3);
  EXPECT_EQ(info.min_seqlen, 2);
  EXPECT_EQ(info.num_sequences(), 3);
  EXPECT_EQ(info.intervals(), (Intervals{{0, 2}, {2, 5}, {5, 7}}));
  EXPECT_EQ(SeqLenInfo::from_seqlens({0, 4}).min_seqlen, 0);
}

TEST(SeqLenInfo, WithoutSequences) {
  const SeqLenInfo info = SeqLenInfo::from_seqlens({});
  EXPECT_EQ(info.max_seqlen, -1);
  EXPECT_EQ(info.min_seqlen, -1);
  EXPECT_TRUE(info.intervals().empty());
}

TEST(SeqLenInfo, RemembersWhetherADeviceWasGiven) {
  EXPECT_FALSE(SeqLenInfo::from_seqlens({1}).device_given);
  EXPECT_TRUE(SeqLenInfo::from_seqlens({1}, at::Device(at::kCPU)).device_given);
  const SeqLenInfo moved = SeqLenInfo::from_seqlens({1}).to(at::kMeta);
  EXPECT_TRUE(moved.device_given);
  EXPECT_TRUE(moved.seqstart.is_meta());
}

TEST(SeqLenInfo, SplitsWhatWasConcatenated) {
  const at::Tensor x = at::randn({1, 7, 4});
  const auto parts = SeqLenInfo::from_seqlens({2, 3, 2}).split(x);
  ASSERT_EQ(parts.size(), 3u);
  EXPECT_TRUE(at::equal(parts[1], x.slice(1, 2, 5)));
  const auto runs = SeqLenInfo::from_seqlens({2, 2, 3}).split(x, {2, 1});
  ASSERT_EQ(runs.size(), 2u);
  EXPECT_TRUE(at::equal(runs[0], x.slice(1, 0, 4).reshape({2, 2, 4})));
  EXPECT_TRUE(at::equal(runs[1], x.slice(1, 4, 7)));
}

TEST(SeqLenInfo, SplitRefusesOtherSizes) {
  const SeqLenInfo info = SeqLenInfo::from_seqlens({2, 5});
  EXPECT_EQ(error_of([&] { info.split(at::zeros({1, 4, 2})); }),
            "attn_bias: the tensor to split has shape [1, 4, 2], expected [1, 7, ...].  Fix: split what was "
            "concatenated for this bias.");
  EXPECT_PRED_FORMAT2(IsSubstring, "[2, 7]", error_of([&] { info.split(at::zeros({2, 7})); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "[7]", error_of([&] { info.split(at::zeros({7})); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "the batch sizes are [2, 1]",
                      error_of([&] { info.split(at::zeros({1, 7}), {2, 1}); }));
}

TEST(SeqLenInfo, RefusesImpossibleLengths) {
  EXPECT_EQ(error_of([] { SeqLenInfo::from_seqlens({1, -2}); }),
            "attn_bias: a sequence length is -2, expected 0 or more.  Fix: count from the first position.");
  EXPECT_PRED_FORMAT2(IsSubstring, "less than 2^31", error_of([] { SeqLenInfo::from_seqlens({int64_t{1} << 31}); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "a total length is 2147483648",
                      error_of([] { SeqLenInfo::from_seqlens({int64_t{1} << 30, int64_t{1} << 30}); }));
}

TEST(PaddedSeqLenInfo, Slots) {
  const PaddedSeqLenInfo info = PaddedSeqLenInfo::from_seqlens_padded({2, 3, 2}, 4);
  EXPECT_TRUE(at::equal(info.seqstart, int32({0, 4, 8, 12})));
  EXPECT_TRUE(at::equal(info.seqlen, int32({2, 3, 2})));
  EXPECT_EQ(info.max_seqlen, 3);
  EXPECT_EQ(info.min_seqlen, 2);
  EXPECT_EQ(info.padding, 4);
  EXPECT_EQ(info.intervals(), (Intervals{{0, 2}, {4, 7}, {8, 10}}));
  EXPECT_TRUE(info.to(at::kMeta).seqlen.is_meta());
}

// A decoding loop edits the tensor alone.
TEST(PaddedSeqLenInfo, FollowsTheTensorOfLengths) {
  const PaddedSeqLenInfo info = PaddedSeqLenInfo::from_seqlens_padded({2, 3}, 4);
  const PaddedSeqLenInfo other_slots = info.with_padding(8);
  info.seqlen.add_(1);
  EXPECT_EQ(info.intervals(), (Intervals{{0, 3}, {4, 8}}));
  EXPECT_EQ(other_slots.intervals(), (Intervals{{0, 3}, {8, 12}}));
  EXPECT_FALSE(other_slots.device_given);
}

TEST(PaddedSeqLenInfo, RefusesWhatDoesNotFit) {
  EXPECT_EQ(error_of([] { PaddedSeqLenInfo::from_seqlens_padded({2, 5}, 4); }),
            "attn_bias: the longest sequence is 5, expected at most the padding, 4.  Fix: give longer slots.");
  EXPECT_PRED_FORMAT2(IsSubstring, "the padding, -1", error_of([] { PaddedSeqLenInfo::from_seqlens_padded({}, -1); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "less than 2^31",
                      error_of([] { PaddedSeqLenInfo::from_seqlens_padded({1, 1}, int64_t{1} << 30); }));
}

TEST(PaddedSeqLenInfo, RefusesSlotsThatNoTensorHolds) {
  EXPECT_PRED_FORMAT2(IsSubstring, "a padding is 9223372036854775807",
                      error_of([] { PaddedSeqLenInfo::from_seqlens_padded({1, 1}, INT64_MAX); }));
}

TEST(GappySeqInfo, RangesAnywhere) {
  const GappySeqInfo info = GappySeqInfo::from_seqlens_gappy({7, 1, 12}, {3, 4}, /*paged=*/false);
  EXPECT_TRUE(at::equal(info.seqstart, int32({7, 1, 12})));
  EXPECT_EQ(info.intervals(), (Intervals{{7, 10}, {1, 5}}));
  EXPECT_EQ(info.max_seqlen, 4);
  EXPECT_EQ(info.num_sequences(), 2);
  const GappySeqInfo paged = GappySeqInfo::from_seqlens_gappy({1, 1}, {3, 4}, /*paged=*/true, at::Device(at::kCPU));
  EXPECT_EQ(paged.intervals(), (Intervals{{1, 4}, {1, 5}}));
  EXPECT_TRUE(paged.device_given);
  EXPECT_TRUE(paged.to(at::kMeta).seqstart.is_meta());
}

TEST(GappySeqInfo, RefusesRangesBeyondTheKeys) {
  EXPECT_EQ(
      error_of([] { GappySeqInfo::from_seqlens_gappy({0, 4, 6}, {1, 3}, /*paged=*/false); }),
      "attn_bias: a sequence of keys is [4, 7), expected a range inside [0, 6).  Fix: the last start is the total "
      "length of the keys.");
}

TEST(GappySeqInfo, RefusesOtherCounts) {
  EXPECT_EQ(error_of([] { GappySeqInfo::from_seqlens_gappy({0, 4}, {1, 2}, /*paged=*/false); }),
            "attn_bias: there are 2 starts, expected 3 for 2 sequences.  Fix: give one start per sequence, and the "
            "total length of the keys last.");
  EXPECT_PRED_FORMAT2(IsSubstring, "there are 3 starts, expected 2",
                      error_of([] { GappySeqInfo::from_seqlens_gappy({0, 4, 8}, {1, 2}, /*paged=*/true); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "there are no sequences",
                      error_of([] { GappySeqInfo::from_seqlens_gappy({0}, {}, /*paged=*/false); }));
  EXPECT_PRED_FORMAT2(IsSubstring, "a sequence start is -1",
                      error_of([] { GappySeqInfo::from_seqlens_gappy({-1, 4}, {1}, /*paged=*/false); }));
}

}  // namespace
}  // namespace xformers::ops
