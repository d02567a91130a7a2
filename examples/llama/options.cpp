#include "examples/llama/options.h"

#include <fmt/format.h>

#include <CLI/CLI.hpp>
#include <sstream>

#include "examples/common/error.h"

namespace llama {
namespace {

// "1,2,3"
Tokens to_tokens(const std::string& text) {
  Tokens tokens;
  std::istringstream in(text);
  for (std::string word; std::getline(in, word, ',');) {
    int64_t token = 0;
    if (!CLI::detail::lexical_cast(word, token) || token < 0) {
      throw examples::Error("--prompt-tokens has '" + word + "', expected numbers from 0 on with commas between them");
    }
    tokens.push_back(token);
  }
  return tokens;
}

void check(const Options& options) {
  if (options.verify && options.sampling.temperature != 0) {
    throw examples::Error("--verify compares the likeliest tokens.  Fix: pass --temperature 0");
  }
}

}  // namespace

ParsedOptions parse_options(int argc, char** argv) {
  ParsedOptions parsed;
  Options& o = parsed.options;
  std::vector<std::string> prompt_tokens;
  CLI::App app(
      "Writes on from prompts with a LLaMA-style model, several at once, with a cache of keys and values.\n\n"
      "  llama --model build/demo/model.ckpt --prompt 'def main' --prompt 'import '    what microgpt has learnt\n"
      "  llama --model Llama-3.2-1B --prompt-tokens 128000,9906,11 --page-size 64      a folder with config.json\n",
      "llama");
  app.get_formatter()->column_width(36);
  app.failure_message([](const CLI::App*, const CLI::Error& error) {
    return "llama: " + std::string(error.what()) + ".  Fix: see llama --help\n";
  });
  const auto number = [&](const char* group, const char* name, auto& value, double least, double most,
                          const char* help) {
    app.add_option(name, value, help)->capture_default_str()->check(CLI::Range(least, most))->take_last()->group(group);
  };

  const char* model = "Model";
  app.add_option("--model", o.model, "A folder with config.json and *.safetensors, or a checkpoint of microgpt")
      ->required()
      ->type_name("PATH")
      ->group(model);
  app.add_option("--device", o.device, "auto: the GPU where there is one that xformers has kernels for")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "cpu", "cuda"}))
      ->group(model);
  app.add_option("--dtype", o.dtype, "Of weights and cache; auto: bfloat16 on a GPU, float32 on the CPU")
      ->capture_default_str()
      ->check(CLI::IsMember({"auto", "float32", "bfloat16", "float16"}))
      ->group(model);
  number(model, "--threads", o.threads, 0, 4096, "Threads; 0: one per core");

  const char* text = "Text";
  app.add_option("--prompt", o.prompts, "Text to go on from, for models of bytes; may come again")
      ->type_name("TEXT")
      ->allow_extra_args(false)
      ->group(text);
  app.add_option("--prompt-tokens", prompt_tokens, "The same as numbers, such as 1,15043; may come again")
      ->type_name("N,N")
      ->allow_extra_args(false)
      ->group(text);
  number(text, "--tokens", o.tokens, 1, 1 << 24, "Tokens to write, at most");
  number(text, "--temperature", o.sampling.temperature, 0, 100,
         "Below 1: safer, above 1: wilder; 0: always the likeliest");
  number(text, "--top-p", o.sampling.top_p, 0, 1, "Choose among the likeliest tokens that have this probability");
  number(text, "--seed", o.seed, 0, 9007199254740992, "Seed of the choices");  // 2^53: ranges are checked as double

  const char* cache = "Cache";
  number(cache, "--capacity", o.capacity, 0, 1 << 30, "Tokens of each text; 0: the longest prompt and --tokens");
  number(cache, "--page-size", o.page_size, 0, 1 << 20, "Tokens of a page; 0: one slot per text");
  app.add_flag("--verify", o.verify, "Compute every text again without a cache and compare, token for token")
      ->group(cache);
  app.add_option("--report", o.report, "Where to write tokens and times as JSON")->type_name("FILE")->group("Files");

  try {
    app.parse(argc, argv);
  } catch (const CLI::ParseError& error) {
    parsed.exit_code = app.exit(error);
    return parsed;
  }
  for (const std::string& tokens : prompt_tokens) o.prompt_tokens.push_back(to_tokens(tokens));
  check(o);
  parsed.run = true;
  return parsed;
}

}  // namespace llama
