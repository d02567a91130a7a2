// xformers_profiler: reads traces without Python and torch.
//
//   xformers_profiler slowest <folder>    which kernels and ranks are slow
//   xformers_profiler report <folder>     writes report.html and report.json into it
#include <cstdio>
#include <exception>
#include <string>

#include "xformers/profiler/report.h"

int main(int argc, char** argv) {
  using namespace xformers::profiler;
  const std::string command = argc == 3 ? argv[1] : "";
  try {
    if (command == "slowest") {
      std::fputs(describe(find_slowest(argv[2])).c_str(), stdout);
    } else if (command == "report") {
      std::puts(write_report(argv[2], {}).c_str());
    } else {
      std::fputs("usage: xformers_profiler slowest|report <folder of traces>\n", stderr);
      return 2;
    }
  } catch (const std::exception& error) {
    std::fprintf(stderr, "%s\n", error.what());
    return 1;
  }
}
