// microgpt: a small GPT that learns to write text, with xformers' attention. See docs/examples/microgpt.md.
#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <cstdio>
#include <exception>
#include <new>
#include <string>

#include "examples/microgpt/compare.h"
#include "examples/microgpt/device.h"
#include "examples/microgpt/options.h"
#include "examples/microgpt/train.h"
#include "examples/microgpt/wait_policy.h"

namespace {

int run(microgpt::Options options) {
  using Command = microgpt::Options::Command;
  const bool training = options.command == Command::kTrain || options.command == Command::kSample;
  const int threads = training ? options.train.compute.threads : options.compare.compute.threads;
  if (threads > 0) at::set_num_threads(threads);
  microgpt::choose_device(training ? options.train.compute : options.compare.compute);
  switch (options.command) {
    case Command::kTrain: return microgpt::train(options.train);
    case Command::kSample: return microgpt::write_sample(options.train);
    case Command::kCompare: return microgpt::compare(options.compare);
    case Command::kMeasure: return microgpt::measure(options.compare);
  }
  return 1;
}

int fail(const std::string& what) {
  std::fprintf(stderr, "microgpt: %s\n", what.c_str());
  return 1;
}

}  // namespace

int main(int argc, char** argv) {
  microgpt::let_waiting_threads_sleep(argv);
  try {
    const microgpt::ParsedOptions parsed = microgpt::parse_options(argc, argv);
    return parsed.run ? run(parsed.options) : parsed.exit_code;
  } catch (const c10::Error& error) {
    return fail(error.what_without_backtrace());
  } catch (const std::bad_alloc&) {
    return fail("out of memory.  Fix: a smaller --batch, --context or --dim");
  } catch (const std::exception& error) {
    return fail(error.what());
  }
}
