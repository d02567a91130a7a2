#include "examples/llama/safetensors.h"

#include <ATen/ops/from_blob.h>
#include <fcntl.h>
#include <fmt/format.h>
#include <fmt/ranges.h>
#include <sys/mman.h>
#include <sys/stat.h>
#include <unistd.h>

#include <bit>
#include <cerrno>
#include <cstring>
#include <limits>
#include <memory>
#include <nlohmann/json.hpp>
#include <string_view>
#include <vector>

#include "examples/common/error.h"

namespace llama {
namespace {

using examples::Error;

static_assert(std::endian::native == std::endian::little);

// A file in memory, for as long as a tensor of it lives.
class Mapping {
 public:
  explicit Mapping(const std::string& path) {
    const int file = open(path.c_str(), O_RDONLY | O_CLOEXEC);
    if (file < 0) throw Error(fmt::format("cannot open the weights {}: {}", path, std::strerror(errno)));
    struct stat facts{};
    const bool known = fstat(file, &facts) == 0 && S_ISREG(facts.st_mode);
    size_ = known ? static_cast<uint64_t>(facts.st_size) : 0;
    // Private and writable: a tensor may be written to, the file may not.
    if (size_ > 0) data_ = mmap(nullptr, size_, PROT_READ | PROT_WRITE, MAP_PRIVATE | MAP_NORESERVE, file, 0);
    close(file);
    if (!known || data_ == MAP_FAILED) throw Error(fmt::format("cannot read the weights {}", path));
  }
  Mapping(const Mapping&) = delete;
  Mapping& operator=(const Mapping&) = delete;
  ~Mapping() {
    if (size_ > 0) munmap(data_, size_);
  }

  std::string_view bytes() const { return {static_cast<const char*>(data_), size_}; }

 private:
  void* data_ = nullptr;
  uint64_t size_ = 0;
};

at::ScalarType dtype_of(const std::string& name, const std::string& file_and_tensor) {
  static const std::map<std::string, at::ScalarType> kDtypes = {
      {"F64", at::kDouble}, {"F32", at::kFloat}, {"F16", at::kHalf}, {"BF16", at::kBFloat16}, {"I64", at::kLong},
      {"I32", at::kInt},    {"I16", at::kShort}, {"I8", at::kChar},  {"U8", at::kByte},       {"BOOL", at::kBool}};
  const auto found = kDtypes.find(name);
  if (found == kDtypes.end()) {
    throw Error(
        fmt::format("{} has the dtype {}, expected one of F64, F32, F16, BF16, I64 ... BOOL", file_and_tensor, name));
  }
  return found->second;
}

uint64_t product(const std::vector<int64_t>& shape, uint64_t element, const std::string& file_and_tensor) {
  uint64_t bytes = element;
  for (int64_t size : shape) {
    if (size < 0 || __builtin_mul_overflow(bytes, static_cast<uint64_t>(size), &bytes)) {
      throw Error(
          fmt::format("{} has the shape [{}], expected sizes of a tensor", file_and_tensor, fmt::join(shape, ", ")));
    }
  }
  return bytes;
}

}  // namespace

std::map<std::string, at::Tensor> read_safetensors(const std::string& path) {
  const auto mapping = std::make_shared<const Mapping>(path);
  const std::string_view file = mapping->bytes();
  uint64_t header_size = 0;
  if (file.size() >= sizeof header_size) std::memcpy(&header_size, file.data(), sizeof header_size);
  if (file.size() < sizeof header_size || header_size > file.size() - sizeof header_size) {
    throw Error(fmt::format("{} is no safetensors file, or is cut short: it has {} bytes, its header says {}", path,
                            file.size(), header_size));
  }
  const auto header = nlohmann::json::parse(file.substr(sizeof header_size, header_size), nullptr, false);
  if (!header.is_object()) throw Error(fmt::format("{} is no safetensors file: its header is no JSON object", path));
  const std::string_view data = file.substr(sizeof header_size + header_size);

  std::map<std::string, at::Tensor> tensors;
  for (const auto& [name, entry] : header.items()) {
    if (name == "__metadata__") continue;
    const std::string what = fmt::format("{}: tensor '{}'", path, name);
    std::vector<int64_t> shape;
    std::vector<uint64_t> offsets;
    std::string dtype_name;
    try {
      entry.at("shape").get_to(shape);
      entry.at("data_offsets").get_to(offsets);
      entry.at("dtype").get_to(dtype_name);
    } catch (const nlohmann::json::exception&) {
      throw Error(what + " has no dtype, shape and data_offsets");
    }
    const at::ScalarType dtype = dtype_of(dtype_name, what);
    const uint64_t expected = product(shape, at::elementSize(dtype), what);
    if (offsets.size() != 2 || offsets[0] > offsets[1] || offsets[1] - offsets[0] != expected) {
      throw Error(fmt::format("{} has data_offsets [{}], expected {} bytes for {} [{}]", what, fmt::join(offsets, ", "),
                              expected, dtype_name, fmt::join(shape, ", ")));
    }
    if (offsets[1] > data.size()) {
      throw Error(fmt::format("{} ends at byte {} of the data, which has {}: the file is cut short", what, offsets[1],
                              data.size()));
    }
    const char* first = data.data() + offsets[0];
    // A header of any length may leave numbers where the processor does not want them: those are copied.
    const bool aligned = reinterpret_cast<uintptr_t>(first) % at::elementSize(dtype) == 0;
    at::Tensor tensor;
    if (aligned || expected == 0) {
      tensor = at::from_blob(const_cast<char*>(first), shape, [mapping](void*) {}, at::TensorOptions(dtype));
    } else {
      tensor = at::empty(shape, at::TensorOptions(dtype));
      std::memcpy(tensor.mutable_data_ptr(), first, expected);
    }
    tensors.emplace(name, std::move(tensor));
  }
  return tensors;
}

}  // namespace llama
