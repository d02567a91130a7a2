// Keys and values as integers: int4 in groups, fp8 e4m3.
#include <cmath>

#include "tests/kernels/attention_check.h"
#include "tests/reference/quantization.h"

namespace xformers::testing {

// All e4m3 numbers, against those that the format's definition lists.
TEST(E4m3, KnownNumbers) {
  using reference::from_e4m3_bits;
  EXPECT_EQ(from_e4m3_bits(0x00), 0);
  EXPECT_EQ(from_e4m3_bits(0x01), 0x1p-9);  // smallest subnormal
  EXPECT_EQ(from_e4m3_bits(0x07), 0.875 * 0x1p-6);
  EXPECT_EQ(from_e4m3_bits(0x08), 0x1p-6);  // smallest normal
  EXPECT_EQ(from_e4m3_bits(0x38), 1);
  EXPECT_EQ(from_e4m3_bits(0x7e), 448);  // largest
  EXPECT_EQ(from_e4m3_bits(0xfe), -448);
  EXPECT_TRUE(std::isnan(from_e4m3_bits(0x7f)));
  EXPECT_TRUE(std::isnan(from_e4m3_bits(0xff)));
}

namespace {
std::vector<std::string> formats(const std::vector<std::string>& shapes) {
  std::vector<std::string> texts;
  for (const std::string& shape : shapes) {
    for (const char* format : {"int4_1", "int4_2", "int4_4", "int4_8", "fp8"}) texts.push_back(shape + "," + format);
  }
  return texts;
}
}  // namespace
INSTANTIATE_TEST_SUITE_P(Quantized, AttentionCases,
                         cases(formats({"attention:*,b2,q1,k150,h8,kv2,d64", "attention:*,q70,k150,h2,d128,causal_br",
                                        "attention:*,q1+3,used100+77,from9+0,page16,h4,kv1,d64",
                                        "attention:*,q1+40,k200,from60+7,used130+90,h2,d64,padded",
                                        "attention:*,q33,k64,h2,d64,dv128,p0.2",
                                        "attention:bf16,q1+1,used700+300,page256,h32,kv8,d128,wide"})),
                         test_name);

INSTANTIATE_TEST_SUITE_P(QuantizedDims, AttentionCases,
                         cases({"attention:*,q3,k40,h2,d8,int4_1", "attention:*,q3,k40,h2,d24,int4_1",
                                "attention:*,q3,k40,h2,d40,dv8,int4_1", "attention:*,q3,k40,h2,d4,fp8",
                                "attention:*,q3,k40,h2,d20,dv12,fp8", "attention:*,q3,k40,h2,d256,int4_8",
                                "attention:*,q3,k40,h4,kv2,vfull,d32,fp8", "attention:*,q9,k40,h2,d32,int4_2,bias"}),
                         test_name);

// Every one of the 256 codes, read through the kernels: one key with the code as its value.
TEST(E4m3, KernelsReadEveryCode) {
  for (const AttentionCase& c :
       parse_attention_cases({"attention:*,q1,k1,h2,d64,dv64,fp8", "attention:*,q40,k1,h2,d64,fp8"})) {
    AttentionRun run(c);
    constexpr uint32_t kScaleOne = 0x3c00;  // 1, and a shift of 0
    run.v_scale_shift.fill_words([](const Sizes&) { return kScaleOne; });
    for (uint32_t first = 0; first < 256; first += 64) {
      run.v.fill_words([&](const Sizes& index) {
        const uint32_t code = first + 4 * static_cast<uint32_t>(index[4]);
        return code | (code + 1) << 8 | (code + 2) << 16 | (code + 3) << 24;
      });
      run.forward();
      for (int64_t d = 0; d < c.dim_v(); ++d) {
        const double expected = reference::from_e4m3_bits(first + static_cast<uint32_t>(d)),
                     got = run.out.get({0, 0, 0, 0, d});
        EXPECT_TRUE(got == expected || (std::isnan(got) && std::isnan(expected))) << first + d << " is " << got;
      }
    }
  }
}

}  // namespace xformers::testing
