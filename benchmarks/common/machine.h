// What the numbers were measured on.
#pragma once

#include <nlohmann/json.hpp>
#include <string>

namespace xformers::bench {

struct Machine {
  std::string cpu_model, date, torch_version, onednn_max_isa;
  int cpus = 0, threads = 0;
};

Machine this_machine();  // threads: LibTorch's
nlohmann::json to_json(const Machine& machine);

}  // namespace xformers::bench
