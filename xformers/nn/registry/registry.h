// Modules by name, open to classes of the user's: attentions, feed-forward layers, positional embeddings. A module is
// built from a map of options that may be that of a whole model: an option that no class of the registry reads is
// warned about, once, with the nearest name.
#pragma once

#include <functional>
#include <memory>

#include "xformers/nn/registry/option_map.h"

namespace torch::nn {
class Module;
}

namespace xformers::nn {

class Registry {
 public:
  using Build = std::function<std::shared_ptr<torch::nn::Module>(const OptionMap&)>;
  explicit Registry(std::string kind) : kind_(std::move(kind)) {}  // "attention", for messages

  // xformers::Error where the name is taken.
  void add(const std::string& name, std::vector<std::string> options, Build build);

  // Module is a pimpl (TORCH_MODULE) whose constructor takes Options.
  template <class Module, class Options>
  void add(const std::string& name) {
    add(name, option_names<Options>(),
        [](const OptionMap& given) { return Module(read_options<Options>(given)).ptr(); });
  }

  // The module that config["name"] names. xformers::Error, with the nearest name, for an unknown one.
  std::shared_ptr<torch::nn::Module> build(const OptionMap& config) const;

  std::vector<std::string> names() const;
  std::vector<std::string> options(const std::string& name) const;  // those that its class reads

 private:
  struct Item {
    std::vector<std::string> options;
    Build build;
  };
  void warn_about_unknown(const std::string& name, const OptionMap& config) const;

  std::string kind_;
  std::map<std::string, Item> items_;
};

// Those of this library; they have its classes from the beginning.
Registry& attention_registry();
Registry& feedforward_registry();
Registry& positional_embedding_registry();

}  // namespace xformers::nn
