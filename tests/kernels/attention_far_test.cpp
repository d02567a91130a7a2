// Offsets beyond 32 bits, in memory that is virtual: more than any GPU has (tests/python/test_cuda_attention.py has
// cases of its own).
#include "tests/kernels/attention_check.h"

namespace xformers::testing {

// Rows 2^30 elements apart: the fifth row starts past 2^32 elements.
INSTANTIATE_TEST_SUITE_P(Far, AttentionCases,
                         cases({"attention:*,b1,q5,k6,h2,d16,far", "attention:*,b2,q6,k5,h4,kv2,d64,far,causal",
                                "attention:bf16,q1,k6,h4,kv1,d64,far", "attention:fp32,q2+3,k4+2,h1,d8,far"}),
                         test_name);

}  // namespace xformers::testing
