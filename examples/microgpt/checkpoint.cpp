#include "examples/microgpt/checkpoint.h"

#include <ATen/CPUGeneratorImpl.h>
#include <ATen/Context.h>
#include <fmt/format.h>
#include <torch/serialize.h>

#include <cerrno>
#include <cstring>
#include <fstream>
#include <iterator>
#include <sstream>

#include "examples/common/atomic_file.h"
#include "examples/microgpt/device.h"
#include "examples/microgpt/error.h"

namespace microgpt {

NLOHMANN_DEFINE_TYPE_NON_INTRUSIVE(ModelOptions, layers, dim, heads, context, dropout)

namespace {

constexpr const char* kFormat = "microgpt checkpoint 1";

std::string describe(const ModelOptions& m) {
  return fmt::format("{} layers, dim {}, {} heads, context {}", m.layers, m.dim, m.heads, m.context);
}

std::string checksum(std::string_view bytes) {  // FNV-1a
  uint64_t hash = 0xcbf29ce484222325u;
  for (char byte : bytes) hash = (hash ^ static_cast<uint8_t>(byte)) * 0x100000001b3u;
  return fmt::format("{:016x}", hash);
}

// File: one line "<format> <checksum of the rest>", then a LibTorch archive.
struct Archive {
  torch::serialize::InputArchive tensors;
  nlohmann::json facts;
  ModelOptions model;
};

// Calls `read` and turns whatever it throws into one sentence.
template <class Read>
void guarded(const std::string& path, Read read) {
  try {
    read();
  } catch (const Error&) {
    throw;
  } catch (const std::exception&) {  // also c10::Error
    throw Error(fmt::format("the checkpoint {} cannot be read: its contents are not as expected", path));
  }
}

// Tensors come to `device`, wherever they were when they were saved.
Archive open_archive(const std::string& path, at::Device device) {
  errno = 0;
  std::ifstream in(path, std::ios::binary);
  if (!in) throw Error(fmt::format("cannot open the checkpoint {}: {}", path, std::strerror(errno)));
  const std::string file{std::istreambuf_iterator<char>(in), {}};
  const size_t line = file.find('\n');
  const std::string_view header = std::string_view(file).substr(0, line == std::string::npos ? 0 : line);
  if (!header.starts_with(kFormat)) throw Error(fmt::format("{} is not a microgpt checkpoint", path));
  const std::string_view contents = std::string_view(file).substr(line + 1);
  if (header != fmt::format("{} {}", kFormat, checksum(contents))) {
    throw Error(fmt::format("the checkpoint {} is damaged or cut short", path));
  }
  Archive archive;
  guarded(path, [&] {
    archive.tensors.load_from(contents.data(), contents.size(), device);
    c10::IValue facts;
    archive.tensors.read("facts", facts);
    archive.facts = nlohmann::json::parse(facts.toStringRef());
    archive.model = archive.facts.at("model").get<ModelOptions>();
  });
  return archive;
}

template <class T>
void read_part(torch::serialize::InputArchive& archive, const char* name, T& part) {
  torch::serialize::InputArchive nested;
  archive.read(name, nested);
  part.load(nested);
}

}  // namespace

void save_checkpoint(const std::string& path, Trainer& trainer, const History& history, uint64_t text_fingerprint) {
  const nlohmann::json facts = {
      {"model", trainer.model()->options()}, {"history", history}, {"text_fingerprint", text_fingerprint}};
  torch::serialize::OutputArchive archive, model, optimizer;
  archive.write("facts", c10::IValue(facts.dump()));
  trainer.model()->save(model);
  archive.write("model", model);
  trainer.optimizer().save(optimizer);
  archive.write("optimizer", optimizer);
  at::Generator random = at::detail::getDefaultCPUGenerator();
  archive.write("random", random.get_state());
  if (trainer.model()->parameters().front().is_cuda()) {
    at::Generator on_gpu = at::globalContext().defaultGenerator({at::kCUDA, 0});
    archive.write("random_cuda", on_gpu.get_state());
  }
  std::ostringstream out;
  archive.save_to(out);
  const std::string contents = std::move(out).str();
  examples::write_file_atomically(path, fmt::format("{} {}\n{}", kFormat, checksum(contents), contents));
}

Resumed restore_checkpoint(const std::string& path, Trainer& trainer) {
  const at::Device device = trainer.model()->parameters().front().device();
  Archive archive = open_archive(path, device);
  ModelOptions wanted = trainer.model()->options();
  wanted.dropout = archive.model.dropout;  // may change from run to run
  if (archive.model != wanted) {
    throw Error(
        fmt::format("the checkpoint {} holds another model: {}; this run has {}.  Fix: pass the same model "
                    "options, or another --checkpoint",
                    path, describe(archive.model), describe(wanted)));
  }
  Resumed resumed;
  guarded(path, [&] {
    resumed.history = archive.facts.at("history").get<History>();
    resumed.text_fingerprint = archive.facts.at("text_fingerprint").get<uint64_t>();
    read_part(archive.tensors, "model", *trainer.model());
    read_part(archive.tensors, "optimizer", trainer.optimizer());
    at::Tensor random_state;
    archive.tensors.read("random", random_state);
    at::Generator random = at::detail::getDefaultCPUGenerator();
    random.set_state(random_state.cpu());
    if (device.is_cuda() && archive.tensors.try_read("random_cuda", random_state)) {  // else it began on the CPU
      at::Generator on_gpu = at::globalContext().defaultGenerator(device);
      on_gpu.set_state(random_state.cpu());
    }
  });
  return resumed;
}

std::shared_ptr<Gpt> load_model(const std::string& path, const ComputeOptions& compute) {
  const at::Device device = device_of(compute);
  Archive archive = open_archive(path, device);
  auto model = std::make_shared<Gpt>(archive.model, compute);
  model->to(device);
  guarded(path, [&] { read_part(archive.tensors, "model", *model); });
  return model;
}

}  // namespace microgpt
