// Which products are measured, and when.
#include <gtest/gtest.h>

#include "xformers/kernels/cuda/product/choices.h"

namespace xformers::testing {
namespace {

using Choices = cuda::Choices<int, char>;

TEST(ProductChoices, TheSecondCallMeasures) {
  Choices choices;
  EXPECT_FALSE(choices.ask(1, true).measure);
  EXPECT_FALSE(choices.ask(1, false).measure);  // during the capture of a graph
  EXPECT_TRUE(choices.ask(1, true).measure);
  EXPECT_FALSE(choices.ask(1, true).measure);  // another thread, meanwhile
  choices.tell(1, 'a');
  EXPECT_EQ(choices.ask(1, true).algorithm, 'a');
  EXPECT_EQ(choices.ask(1, false).algorithm, 'a');
}

TEST(ProductChoices, OneAtATime) {
  Choices choices;
  for (int shape : {1, 2}) choices.ask(shape, true);
  EXPECT_TRUE(choices.ask(1, true).measure);
  EXPECT_FALSE(choices.ask(2, true).measure);
  choices.tell(1, std::nullopt);
  EXPECT_FALSE(choices.ask(1, true).measure);  // the usual one has won
  EXPECT_FALSE(choices.ask(1, true).algorithm);
  EXPECT_TRUE(choices.ask(2, true).measure);
}

TEST(ProductChoices, RemembersSoManyAndNoMore) {
  Choices choices;
  for (int shape = 0; shape < static_cast<int>(Choices::kMostSeen) + 1; ++shape) choices.ask(shape, true);
  EXPECT_FALSE(choices.ask(0, true).measure);  // forgotten
  EXPECT_TRUE(choices.ask(0, true).measure);
  choices.tell(0, 'a');
  int measured = 1;
  for (int shape = 1; shape < 200; ++shape) {
    choices.ask(shape, true);
    if (!choices.ask(shape, true).measure) continue;
    ++measured;
    choices.tell(shape, 'b');
  }
  EXPECT_EQ(measured, static_cast<int>(Choices::kMostMeasured));
  EXPECT_EQ(choices.ask(0, true).algorithm, 'a');
}

}  // namespace
}  // namespace xformers::testing
