// The golden examples of tests/cases/attn_bias_examples.json, which the Python tests read too: every bias shows what is
// written there, and attention follows it.
#include <gtest/gtest.h>

#include <fstream>
#include <functional>
#include <map>
#include <nlohmann/json.hpp>
#include <set>
#include <string>

#include "tests/ops/bias_check.h"
#include "xformers/ops/attention/contracts/bias_row.h"

namespace xformers::ops {
namespace {

using Json = nlohmann::json;

const Json& examples() {
  static const Json read = Json::parse(std::ifstream(XFORMERS_TEST_CASES "/attn_bias_examples.json"));
  return read;
}

std::string class_of(const Json& example) {
  const std::string name = example["name"];
  return name.substr(0, name.find(','));
}

// The arguments of an example by name.
struct Arguments {
  const Json& json;

  int64_t number(const char* name) const { return json.at(name).get<int64_t>(); }
  std::vector<int64_t> numbers(const char* name) const { return json.at(name).get<std::vector<int64_t>>(); }
  std::vector<int64_t> q() const { return numbers("q_seqlen"); }
  std::vector<int64_t> k() const { return json.contains("kv_seqlen") ? numbers("kv_seqlen") : q(); }
  int64_t window() const { return number("window_size"); }
  at::Tensor table() const {
    std::vector<at::Tensor> rows;
    for (const Json& row : json.at("block_tables")) {
      rows.push_back(at::tensor(row.get<std::vector<int64_t>>(), at::kInt));
    }
    return at::stack(rows);
  }
  at::Tensor scores() const {  // [1, 1, queries, keys]
    std::vector<at::Tensor> rows;
    for (const Json& row : json.at("bias")[0][0])
      rows.push_back(at::tensor(row.get<std::vector<double>>(), at::kFloat));
    return at::stack(rows).unsqueeze(0).unsqueeze(0);
  }
};

struct Built {
  AttentionBias bias;
  std::function<at::Tensor(at::IntArrayRef)> materialize;
};

template <class Bias>
Built built(const Bias& bias) {
  return {bias, [=](at::IntArrayRef sizes) { return bias.materialize(sizes); }};
}

template <class Mask>
Built paged(const Arguments& a) {
  return built(Mask::from_seqlens(a.q(), a.k(), a.table(), a.number("page_size")));
}

template <class Mask>
Built padded(const Arguments& a) {
  return built(Mask::from_seqlens(a.q(), a.number("kv_padding"), a.k()));
}

template <class Mask>
Built gappy(const Arguments& a) {
  return built(Mask::from_seqlens(a.q(), a.numbers("kv_seqstarts"), a.k()));
}

BlockDiagonalMask blocks(const Arguments& a) { return BlockDiagonalMask::from_seqlens(a.q(), a.k()); }

const std::map<std::string, Built (*)(const Arguments&)> kBuild = {
    {"LowerTriangularMask", [](const Arguments&) { return built(LowerTriangularMask()); }},
    {"LowerTriangularMaskWithTensorBias",
     [](const Arguments& a) { return built(LowerTriangularMask().add_bias(a.scores())); }},
    {"LowerTriangularFromBottomRightMask",
     [](const Arguments&) { return built(LowerTriangularFromBottomRightMask()); }},
    {"LowerTriangularFromBottomRightLocalAttentionMask",
     [](const Arguments& a) { return built(LowerTriangularFromBottomRightMask().make_local_attention(a.window())); }},
    {"LocalAttentionFromBottomRightMask",
     [](const Arguments& a) {
       return built(LocalAttentionFromBottomRightMask(a.number("window_left"), a.number("window_right")));
     }},
    {"BlockDiagonalMask", [](const Arguments& a) { return built(blocks(a)); }},
    {"BlockDiagonalCausalMask", [](const Arguments& a) { return built(blocks(a).make_causal()); }},
    {"BlockDiagonalCausalFromBottomRightMask",
     [](const Arguments& a) { return built(blocks(a).make_causal_from_bottomright()); }},
    {"BlockDiagonalCausalLocalAttentionMask",
     [](const Arguments& a) { return built(blocks(a).make_local_attention(a.window())); }},
    {"BlockDiagonalCausalLocalAttentionFromBottomRightMask",
     [](const Arguments& a) { return built(blocks(a).make_local_attention_from_bottomright(a.window())); }},
    {"BlockDiagonalPaddedKeysMask", padded<BlockDiagonalPaddedKeysMask>},
    {"BlockDiagonalCausalWithOffsetPaddedKeysMask", padded<BlockDiagonalCausalWithOffsetPaddedKeysMask>},
    {"BlockDiagonalCausalLocalAttentionPaddedKeysMask",
     [](const Arguments& a) {
       return built(BlockDiagonalCausalLocalAttentionPaddedKeysMask::from_seqlens_local(a.q(), a.number("kv_padding"),
                                                                                        a.k(), a.window()));
     }},
    {"BlockDiagonalGappyKeysMask", gappy<BlockDiagonalGappyKeysMask>},
    {"BlockDiagonalCausalWithOffsetGappyKeysMask", gappy<BlockDiagonalCausalWithOffsetGappyKeysMask>},
    {"PagedBlockDiagonalPaddedKeysMask", paged<PagedBlockDiagonalPaddedKeysMask>},
    {"PagedBlockDiagonalCausalWithOffsetPaddedKeysMask", paged<PagedBlockDiagonalCausalWithOffsetPaddedKeysMask>},
    {"BlockSparseMask",
     [](const Arguments& a) {
       std::vector<at::Tensor> rows;
       for (const Json& row : a.json.at("layout"))
         rows.push_back(at::tensor(row.get<std::vector<int64_t>>(), at::kInt));
       const BlockSparseMask mask(at::stack(rows), a.number("block_size"));
       const std::string band = a.json.value("band", "");
       return built(band == "causal"      ? mask.make_causal()
                    : band == "causal_br" ? mask.make_causal_from_bottomright()
                                          : mask);
     }},
    {"PagedBlockDiagonalGappyKeysMask",
     [](const Arguments& a) {
       return built(PagedBlockDiagonalGappyKeysMask::from_seqlens(a.q(), a.numbers("kv_seqstarts"), a.k(), a.table(),
                                                                  a.number("page_size")));
     }},
};

TEST(BiasExamples, HoldEveryBias) {
  std::set<std::string> shown, known;
  for (const Json& example : examples()) shown.insert(class_of(example));
  for (const BiasRow& row : bias_rows()) known.insert(row.name);
  known.erase("None");
  known.erase("Tensor");
  EXPECT_EQ(shown, known);
}

TEST(BiasExamples, MaterializeAndAttentionShowWhatIsWritten) {
  for (const Json& example : examples()) {
    SCOPED_TRACE(example["name"].get<std::string>());
    const auto build = kBuild.find(class_of(example));
    ASSERT_NE(build, kBuild.end()) << "no way to build it here";
    const Arguments arguments{example["arguments"]};
    const Built made = build->second(arguments);
    EXPECT_EQ(made.bias.lowered().name, class_of(example));
    const auto rows = example["rows"].get<std::vector<std::string>>();
    const at::Tensor mask = mask_by_rule(static_cast<int64_t>(rows.size()), static_cast<int64_t>(rows[0].size()),
                                         [&](int64_t i, int64_t j) { return rows[i][j] == 'x'; });
    const at::Tensor got = made.materialize(example["shape"].get<std::vector<int64_t>>());
    EXPECT_TRUE(at::equal(got.isfinite().reshape(mask.sizes()), mask.isfinite())) << got;
    if (!made.bias.lowered().scores.defined()) expect_attention_follows(made.bias, mask);
  }
}

}  // namespace
}  // namespace xformers::ops
