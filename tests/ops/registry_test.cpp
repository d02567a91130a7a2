// Registries of modules: names, options by name, what is unknown.
#include "xformers/nn/registry/registry.h"

#include <ATen/ATen.h>
#include <gtest/gtest.h>
#include <torch/nn/cloneable.h>
#include <torch/nn/pimpl.h>

#include "xformers/kernels/base/error.h"

namespace xformers::nn {
namespace {

struct ScaleOptions {
  double factor = 2;
  int64_t count = 1;
  bool on = true;
  std::string mode = "a";
  std::vector<int64_t> sizes{};
  std::optional<double> dropout{};
  at::Tensor table{};
  static constexpr auto fields() {
    using O = ScaleOptions;
    return std::tuple{field("factor", &O::factor), field("count", &O::count), field("on", &O::on),
                      field("mode", &O::mode),     field("sizes", &O::sizes), field("dropout", &O::dropout),
                      field("table", &O::table)};
  }
};

struct ScaleImpl : torch::nn::Cloneable<ScaleImpl> {
  explicit ScaleImpl(const ScaleOptions& options_arg) : options(options_arg) {}
  void reset() override {}
  ScaleOptions options;
};
TORCH_MODULE(Scale);

Registry with_scale() {
  Registry registry("thing");
  registry.add<Scale, ScaleOptions>("scale");
  return registry;
}

std::string message_of(const std::function<void()>& call) {
  try {
    call();
  } catch (const Error& error) {
    return error.what();
  }
  return "no error";
}

bool has(const std::string& text, const std::string& part) { return text.find(part) != text.npos; }

class Warnings : public c10::WarningHandler {
 public:
  Warnings() { c10::WarningUtils::set_warning_handler(this); }
  ~Warnings() override { c10::WarningUtils::set_warning_handler(nullptr); }
  void process(const c10::Warning& warning) override { texts.push_back(warning.msg()); }
  std::vector<std::string> texts;
};

TEST(Registry, BuildsByNameWithDefaults) {
  const Registry registry = with_scale();
  EXPECT_EQ(registry.names(), std::vector<std::string>{"scale"});
  const OptionMap config{{"name", "scale"},
                         {"factor", 3},
                         {"count", 4.0},
                         {"on", false},
                         {"dropout", c10::IValue()},
                         {"sizes", std::vector<int64_t>{1, 2}},
                         {"dim_model", 64},
                         {"table", at::ones({2})}};
  const auto built = registry.build(config);
  const ScaleOptions& options = dynamic_cast<ScaleImpl&>(*built).options;
  EXPECT_EQ(options.factor, 3);
  EXPECT_EQ(options.count, 4);
  EXPECT_FALSE(options.on);
  EXPECT_EQ(options.mode, "a");
  EXPECT_EQ(options.sizes, (std::vector<int64_t>{1, 2}));
  EXPECT_FALSE(options.dropout);
  EXPECT_EQ(options.table.numel(), 2);
}

TEST(Registry, NamesThatAreTakenOrUnknown) {
  Registry registry = with_scale();
  EXPECT_TRUE(has(message_of([&] { registry.add<Scale, ScaleOptions>("scale"); }), "registered already"));
  EXPECT_TRUE(has(message_of([&] { registry.build({{"name", "scales"}}); }), "the nearest is 'scale'"));
  EXPECT_TRUE(has(message_of([&] { registry.build({}); }), "name is ''"));
}

TEST(Registry, OptionsOfAnotherType) {
  const Registry registry = with_scale();
  EXPECT_TRUE(has(message_of([&] { registry.build({{"name", "scale"}, {"count", 1.5}}); }),
                  "count is a Double, expected a whole number"));
  for (const char* option : {"factor", "on", "sizes", "table", "dropout"}) {
    EXPECT_TRUE(has(message_of([&] { registry.build({{"name", "scale"}, {option, "text"}}); }), option));
  }
  EXPECT_TRUE(has(message_of([&] { registry.build({{"name", "scale"}, {"mode", 1}}); }), "mode is a Int"));
}

TEST(Registry, UnknownOptionsAreWarnedAboutOnce) {
  const Registry registry = with_scale();
  Warnings warnings;
  for (int i = 0; i < 2; ++i) registry.build({{"name", "scale"}, {"facto", 1.0}, {"seq_len", 3}});
  ASSERT_EQ(warnings.texts.size(), 1u);
  EXPECT_TRUE(has(warnings.texts[0], "'facto' is unknown and has no effect; did you mean 'factor'?"));
}

}  // namespace
}  // namespace xformers::nn
