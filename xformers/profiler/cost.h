// What a call of an operator costs: floating-point operations, and the bytes that it must move at least.
//
// Formulas are plain C++ over shapes, so that a counter that sees tensors and an analysis that sees a trace share them.
// Those of an operator of this library lie beside its schema (xformers/ops/<family>/<family>_cost.h).
#pragma once

#include <cstdint>
#include <string>
#include <string_view>
#include <vector>

namespace xformers::profiler {

using Shape = std::vector<int64_t>;

// One argument of a call, as a trace or a counter records it.
struct Argument {
  std::vector<Shape> shapes;     // of a tensor, or of each tensor of a list; empty for everything else
  std::string type;              // of the elements in LibTorch's words: "float", "c10::BFloat16"; "" where unknown
  std::string value;             // of a number, flag or list: "0.5", "True", "[1, 2]"
  std::vector<int64_t> numbers;  // what a tensor of integers holds, where that is known
};

// The arguments of one call under the names that the schema gives them.
class Call {
 public:
  Call(std::string_view names, const std::vector<Argument>& arguments) : names_(names), arguments_(arguments) {}

  const Argument* find(std::string_view name) const;  // nullptr where it wasn't given
  bool has_tensor(std::string_view name) const { return !shape(name).empty(); }
  const Shape& shape(std::string_view name) const;  // empty where there is none
  std::string_view type(std::string_view name) const;
  int64_t integer(std::string_view name, int64_t otherwise) const;
  bool flag(std::string_view name, bool otherwise) const;
  std::vector<int64_t> integers(std::string_view name) const;  // of a list, or of a tensor whose numbers are known
  const std::vector<Argument>& arguments() const { return arguments_; }

 private:
  std::string_view names_;  // "query, key, value"
  const std::vector<Argument>& arguments_;
};

// A multiplication and an addition are two operations. Bytes: every input read once, every result written once.
struct Cost {
  int64_t flops = 0;
  int64_t bytes = 0;
  std::string type;  // of what is multiplied, in LibTorch's words
};

enum class Kind : uint8_t { kProduct, kAttention, kOther, kCopy };

struct CostRule {
  std::string_view name;       // "xformers::attention_forward", "aten::mm"
  std::string_view arguments;  // names as in the schema, up to the last one that the formula looks at
  Kind kind;
  bool backward;  // part of a backward pass wherever it runs
  Cost (*cost)(const Call& call);
};

// Of a name in a rule's arguments; -1 where it isn't there.
int position_of(std::string_view arguments, std::string_view name);

// nullptr for an operator that nothing is known about.
const CostRule* find_cost_rule(std::string_view name);
std::vector<const CostRule*> cost_rules();
Cost cost_of(const CostRule& rule, const std::vector<Argument>& arguments);

// ---- what formulas are made of ----
int64_t element_bytes(std::string_view type);  // 0 for a type that is not known
int64_t count(const Shape& shape);             // of elements; 1 for a shape without dimensions
int64_t bytes_of(const Argument& argument);    // of all its tensors
int64_t bytes_of_inputs(const Call& call);
int64_t rows(const Shape& shape);  // all dimensions but the last

// [m, k] times [k, n], reading both and writing the result, all of `type`.
Cost product_cost(int64_t m, int64_t k, int64_t n, std::string_view type);

// An operator that reads what it is given and writes results as large as the named arguments ("x, weight").
Cost memory_cost_of(const Call& call, std::string_view written);

}  // namespace xformers::profiler
