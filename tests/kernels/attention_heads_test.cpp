// Grouped-query attention: heads that share keys and values, in four and five dimensions.
#include "tests/kernels/attention_check.h"

namespace xformers::testing {

INSTANTIATE_TEST_SUITE_P(Grouped, AttentionCases,
                         cases({"attention:*,b2,q40,k90,h8,kv2,d32", "attention:*,b2,q40,k90,h6,kv1,d32,causal_br",
                                "attention:*,b2,q40,k90,h6,g3,d32", "attention:*,b2,q40,k90,h6,g2,kv1,d32",
                                "attention:*,q1,k333,h32,kv8,d64", "attention:*,q2,k333,h32,kv8,d128,causal_br",
                                "attention:*,q7,k100,h12,kv1,d80", "attention:*,q40,k90,h4,kv2,vfull,d32",
                                "attention:*,q3+1+0+50,k40+0+3+50,h8,kv2,d64,causal_br",
                                "attention:bf16,q130,k130,h8,kv2,d64,causal,p0.1,dlse",
                                "attention:fp16,b2,q3,k64,h10,kv2,d64,bhsd"}),
                         test_name);

}  // namespace xformers::testing
