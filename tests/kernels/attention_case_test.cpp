// The text form of a case, both ways.
#include <gtest/gtest.h>

#include <stdexcept>

#include "tests/cases/attention.h"

namespace xformers::testing {

TEST(AttentionCaseText, ReadsAllWords) {
  const AttentionCase c =
      parse_attention_case("attention:bf16,b2,q1023,k2048,h16,kv4,d128,dv64,causal_br,p0.1,dlse,t3,seed7");
  EXPECT_EQ(c.dtype, DType::kBFloat16);
  EXPECT_EQ(c.batch, 2);
  EXPECT_EQ(c.seqlen_q, 1023);
  EXPECT_EQ(c.seqlen_k, 2048);
  EXPECT_EQ(c.heads, 16);
  EXPECT_EQ(c.num_groups(), 4);
  EXPECT_EQ(c.heads_per_group(), 4);
  EXPECT_EQ(c.head_dim, 128);
  EXPECT_EQ(c.dim_v(), 64);
  EXPECT_EQ(c.band.window_left, kUnbounded);
  EXPECT_EQ(c.band.window_right, 0);
  EXPECT_TRUE(c.band.bottom_right);
  EXPECT_EQ(c.dropout_p, 0.1);
  EXPECT_TRUE(c.dlse);
  EXPECT_EQ(c.threads, 3);
  EXPECT_EQ(c.seed, 7u);
}

TEST(AttentionCaseText, WritesWhatItReads) {
  for (const char* text :
       {"attention:fp16,b1,q3,k4,h2,d8,band*_5", "attention:fp32,b1,q3,k4,h2,d8,band2_5_br,bias_prefix3@odd,padded",
        "attention:fp64,b1,q3+0,k4+9,used1+9,h6,kv1,g3,d8,scale0.5,amp2",
        "attention:bf16,b1,q3+0,from3+9,used1+9,page16@shared,h6,kv1,g3,int4_2,d32,wide,splits4",
        "attention:fp16,b1,q3+0,k20,from3+9,used1+9,h6,fp8,d32,padded", "attention:fp32,b1,q3,k3,h2,d8,qkv,p0.25"}) {
    EXPECT_EQ(to_text(parse_attention_case(text)), text);
  }
}

TEST(AttentionCaseText, NamesWhatItCannotRead) {
  for (const char* text : {"attention:int8,q3", "attention:fp32,q3,wat", "attention:fp32,qx", "rope:fp32",
                           "attention:fp32,h6,kv4", "attention:fp32,q3+4,k5", "attention:fp32,q3,k5,page16",
                           "attention:fp32,q3+1,used3+1,page16@odd", "attention:fp32,q3+1,k9,from3,used3+1",
                           "attention:fp32,q3,k5,d12,int4_1", "attention:fp32,bias_banana", "attention:fp32,band3"}) {
    EXPECT_THROW(parse_attention_case(text), std::invalid_argument) << text;
  }
}

}  // namespace xformers::testing
