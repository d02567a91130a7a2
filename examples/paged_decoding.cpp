// Two texts grow by a token at a time; their keys lie in pages of 16 rows that are taken from one pool when they are
// needed, in any order, as servers keep them. Attention reads the pages where they lie.
#include <ATen/ATen.h>

#include <iostream>
#include <vector>

#include "xformers/ops/attention/attention.h"

int main() {
  constexpr int64_t kTexts = 2, kHeads = 4, kDim = 32, kPage = 16, kMaxPages = 4, kPool = kTexts * kMaxPages;
  at::Tensor keys = at::empty({1, kPool * kPage, kHeads, kDim}), values = at::empty_like(keys);
  at::Tensor table = at::zeros({kTexts, kMaxPages}, at::kInt);  // which pages each text has
  std::vector<int64_t> lengths = {0, 0}, free_pages = {5, 0, 7, 2, 6, 1, 4, 3};
  std::vector<std::vector<at::Tensor>> history(kTexts);  // (key, value) of every token, to compare with

  double worst = 0;
  for (int64_t step = 0; step < 40; ++step) {
    for (int64_t text = 0; text < kTexts; ++text) {
      int64_t& length = lengths[text];
      if (length % kPage == 0) {  // the last page is full
        table[text][length / kPage] = free_pages.back();
        free_pages.pop_back();
      }
      const int64_t row = table[text][length / kPage].item<int>() * kPage + length % kPage;
      const at::Tensor token = at::randn({2, kHeads, kDim});
      keys[0][row] = token[0];
      values[0][row] = token[1];
      history[text].push_back(token);
      ++length;
    }
    const at::Tensor query = at::randn({1, kTexts, kHeads, kDim});  // the newest token of each text
    const auto mask = xformers::ops::PagedBlockDiagonalPaddedKeysMask::from_seqlens({1, 1}, lengths, table, kPage);
    const at::Tensor out = xformers::ops::memory_efficient_attention(query, keys, values, mask);

    for (int64_t text = 0; text < kTexts; ++text) {        // the formula, over all that the text has been so far
      const at::Tensor all = at::stack(history[text], 2);  // [2, heads, length, dim]
      const at::Tensor scores = at::matmul(all[0], query[0][text].unsqueeze(-1)).squeeze(-1) / std::sqrt(double{kDim});
      const at::Tensor expected = at::matmul(scores.softmax(-1).unsqueeze(1), all[1]).squeeze(1);
      worst = std::max(worst, (out[0][text] - expected).abs().max().item<double>());
    }
  }
  std::cout << kTexts << " texts of " << lengths[0] << " tokens, max error " << worst << "\n";
  return worst < 1e-5 ? 0 : 1;
}
