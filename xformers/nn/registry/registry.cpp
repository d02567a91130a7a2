#include "xformers/nn/registry/registry.h"

#include <c10/util/Exception.h>
#include <torch/nn/module.h>

#include <mutex>
#include <set>

#include "xformers/kernels/base/check.h"
#include "xformers/kernels/base/nearest_name.h"
#include "xformers/nn/registry/built_in.h"

namespace xformers::nn {
namespace {

// Keys that configs of models carry along for several of their parts.
constexpr const char* kSharedOptions[] = {"name",   "dim_model",   "dim_features", "dim_head", "num_heads", "seq_len",
                                          "causal", "max_seq_len", "to_seq_len",   "dropout",  "bias"};

// Whether this is the first time that anybody asks.
bool first_time(const std::string& what) {
  static std::mutex mutex;
  static std::set<std::string> seen;
  const std::lock_guard lock(mutex);
  return seen.insert(what).second;
}

}  // namespace

void Registry::add(const std::string& name, std::vector<std::string> options, Build build) {
  if (!items_.emplace(name, Item{std::move(options), std::move(build)}).second) {
    fail({kind_, "name", "'" + name + "', which is registered already", "a new one", "choose another name"});
  }
}

std::shared_ptr<torch::nn::Module> Registry::build(const OptionMap& config) const {
  const auto given = config.find("name");
  const std::string name = given == config.end() || given->second.isNone() ? "" : given->second.toStringRef();
  const auto item = items_.find(name);
  if (item == items_.end()) {
    std::string all;
    std::vector<std::string_view> views;
    for (const auto& [known, _] : items_) {
      all += (all.empty() ? "one of " : ", ") + known;
      views.push_back(known);
    }
    const std::string nearest(nearest_name(name, views));
    fail({kind_, "name", "'" + name + "'", all.empty() ? "a registered name; so far there is none" : all,
          nearest.empty() ? "register the class first" : "the nearest is '" + nearest + "'"});
  }
  warn_about_unknown(name, config);
  return item->second.build(config);
}

void Registry::warn_about_unknown(const std::string& name, const OptionMap& config) const {
  std::set<std::string_view> known(std::begin(kSharedOptions), std::end(kSharedOptions));
  for (const auto& [_, item] : items_) known.insert(item.options.begin(), item.options.end());
  for (const auto& [option, _] : config) {
    if (known.contains(option) || !first_time(kind_ + "/" + name + "/" + option)) continue;
    TORCH_WARN(kind_, " '", name, "': the option '", option, "' is unknown and has no effect; did you mean '",
               nearest_name(option, {known.begin(), known.end()}), "'?");
  }
}

std::vector<std::string> Registry::options(const std::string& name) const { return items_.at(name).options; }

std::vector<std::string> Registry::names() const {
  std::vector<std::string> result;
  for (const auto& [name, _] : items_) result.push_back(name);
  return result;
}

namespace {

Registry with(const char* kind, void (*add)(Registry&)) {
  Registry registry(kind);
  add(registry);
  return registry;
}

}  // namespace

Registry& attention_registry() {
  static Registry registry = with("attention", add_attentions);
  return registry;
}

Registry& feedforward_registry() {
  static Registry registry = with("feedforward", add_feedforwards);
  return registry;
}

Registry& positional_embedding_registry() {
  static Registry registry = with("positional embedding", add_positional_embeddings);
  return registry;
}

}  // namespace xformers::nn
