#include "examples/microgpt/bigram.h"

#include <cmath>
#include <vector>

namespace microgpt {

Bigram::Bigram(const Bytes& train) {
  std::vector<std::array<int64_t, 256>> pairs(256);
  std::array<int64_t, 256> bytes{};
  for (size_t i = 0; i < train.size(); ++i) {
    ++bytes[train[i]];
    if (i > 0) ++pairs[train[i - 1]][train[i]];
  }
  for (int a = 0; a < 256; ++a) {
    int64_t total = 0;
    for (int64_t count : pairs[a]) total += count;
    for (int b = 0; b < 256; ++b) {
      const double unigram = static_cast<double>(bytes[b] + 1) / static_cast<double>(train.size() + 256);
      const double p = (static_cast<double>(pairs[a][b]) + unigram) / static_cast<double>(total + 1);
      (*bits_)[a][b] = static_cast<float>(-std::log2(p));
    }
  }
}

double Bigram::bits(uint8_t previous, uint8_t next) const { return (*bits_)[previous][next]; }

}  // namespace microgpt
