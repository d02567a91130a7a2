// The torch-free tests. --case=<text form> runs one attention case alone instead.
#include <gtest/gtest.h>

#include <cstdlib>
#include <exception>
#include <iostream>
#include <string_view>

#include "tests/cases/attention.h"
#include "tests/kernels/attention_check.h"

namespace {

int run_case(std::string_view text) try {
  using namespace xformers::testing;
  const AttentionCase c = parse_attention_case(text);
  const ::testing::AssertionResult result = matches_reference(c);
  std::cout << (result ? "passed: " + to_text(c) : std::string("FAILED: ") + result.message()) << "\n";
  return result ? EXIT_SUCCESS : EXIT_FAILURE;
} catch (const std::exception& error) {
  std::cerr << error.what() << "\n";
  return EXIT_FAILURE;
}

}  // namespace

int main(int argc, char** argv) {
  ::testing::InitGoogleTest(&argc, argv);
  constexpr std::string_view kCase = "--case=";
  for (int i = 1; i < argc; ++i) {
    const std::string_view argument = argv[i];
    if (argument.starts_with(kCase)) return run_case(argument.substr(kCase.size()));
    std::cerr << "unknown option " << argument << "; there are --case=<text form> and GoogleTest's (--help)\n";
    return EXIT_FAILURE;
  }
  const int result = RUN_ALL_TESTS();
  xformers::testing::report_ratios();
  return result;
}
