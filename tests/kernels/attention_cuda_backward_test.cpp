// What the tensor-core backward decides by size: queries of a key tile in parts, heads in turns, slices that a mask
// leaves out, several tiles of keys and blocks of queries for every head_dim.
#include "tests/kernels/attention_check.h"

namespace xformers::testing {
namespace {

std::vector<std::string> for_each_dim(const std::string& rest) {
  std::vector<std::string> texts;
  for (const char* dim : {"32", "64", "96", "128", "192", "256"}) {
    for (const char* dtype : {"bf16", "fp16"})
      texts.push_back(std::string("attention:") + dtype + ",d" + dim + "," + rest);
  }
  return texts;
}
std::vector<std::string> all_of(std::initializer_list<std::vector<std::string>> lists) {
  std::vector<std::string> all;
  for (const auto& list : lists) all.insert(all.end(), list.begin(), list.end());
  return all;
}

}  // namespace

// One head has fewer key tiles than the GPU multiprocessors, and at least eight blocks of queries.
INSTANTIATE_TEST_SUITE_P(
    SplitQueries, AttentionCases,
    cases(all_of({for_each_dim("q530,k140,h1"),
                  for_each_dim("q700,k530,h2,causal_br,dlse"),
                  for_each_dim("q600,k304,h1,causal,bias,p0.2"),
                  {"attention:bf16,q1100,k90,h4,kv2,d64,band100_30", "attention:fp16,q900,k200,h1,d128,band*_200,dlse",
                   "attention:bf16,q600+0+520,k200+9+333,h2,d128,causal", "attention:fp16,q1030,k70,h2,d80,dv72,p0.1",
                   "attention:bf16,q600,k600,h1,d40,bias@odd,causal"}})),
    test_name);

// More blocks than one turn of heads holds, and than the GPU has at work at once: those claim the others. The last turn
// has fewer heads.
INSTANTIATE_TEST_SUITE_P(HeadsInTurns, AttentionCases,
                         cases({"attention:bf16,b2,q40,k260,h150,d32,causal", "attention:bf16,b3,q70,k270,h50,d128",
                                "attention:fp16,q20+50+30,k200+10+300,h90,d64,causal_br",
                                "attention:bf16,q20+0+150,k200+0+300,h60,d128,causal_br",
                                "attention:bf16,q20+0+150,k0+70+100,h90,d256,dlse",
                                "attention:bf16,b1,q70,k200,h100,d256,t1"}),
                         test_name);

// Bands whose edges cross tiles of keys and blocks of queries everywhere.
INSTANTIATE_TEST_SUITE_P(Edges, AttentionCases,
                         cases(all_of({for_each_dim("q300,k300,h1,band0_0"), for_each_dim("q290,k310,h1,band37_5_br"),
                                       for_each_dim("q310,k270,h1,causal,dlse"),
                                       for_each_dim("q200,k300,h1,band130_0,p0.3"),
                                       for_each_dim("q200,k200,h1,band20_60,bias")})),
                         test_name);

}  // namespace xformers::testing
