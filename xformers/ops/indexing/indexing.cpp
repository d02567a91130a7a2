// Schemas, public functions and checks.
#include "xformers/ops/indexing/indexing.h"

#include <string>

#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

std::string item(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

void check_index(const Check& check, const char* name, const at::Tensor& index) {
  check.dims(name, index, 1, "[n] int64");
  if (index.scalar_type() != at::kLong) {
    check.fail(std::string(name) + ".dtype", describe_dtype(index.scalar_type()), "int64", "convert it with .long()");
  }
}

// index_select_cat's and scaled_index_add's operands agree in everything but their first dimension.
void check_rows(const Check& check, const at::Tensor& whole, const char* whole_name, const at::Tensor& index,
                const at::Tensor& source, const OptionalTensor& scaling) {
  check.dims(whole_name, whole, 3, "[rows, middle, width]");
  check.floating(whole_name, whole);
  check_index(check, "index", index);
  check.shape("source", source, {index.sym_size(0), whole.sym_size(1), whole.sym_size(2)},
              "one source row per index, with the other dimensions of input");
  check.same_dtype("source", source, whole, whole_name);
  check.same_device("index", index, whole, whole_name);
  check.same_device("source", source, whole, whole_name);
  if (!scaling) return;
  check.shape("scaling", *scaling, {whole.sym_size(2)}, "one factor per element of the last dimension");
  check.floating("scaling", *scaling);
  check.same_device("scaling", *scaling, whole, whole_name);
}

}  // namespace

void IndexSelectCat::check() const {
  const Check check(kName);
  if (sources.empty()) check.fail("sources", "empty", "at least one tensor", "leave the call out");
  if (sources.size() != indices.size()) {
    check.fail("len(indices)", std::to_string(indices.size()), std::to_string(sources.size()) + ", that of sources",
               "give one index per source");
  }
  for (size_t i = 0; i < sources.size(); ++i) {
    const std::string source = item("sources", i), index = item("indices", i);
    check.dims(source.c_str(), sources[i], 2, "[rows, width]");
    check.floating(source.c_str(), sources[i]);
    check.same_dtype(source.c_str(), sources[i], sources[0], "sources[0]");
    check.same_device(source.c_str(), sources[i], sources[0], "sources[0]");
    check_index(check, index.c_str(), indices[i]);
    check.same_device(index.c_str(), indices[i], sources[0], "sources[0]");
  }
}

at::Tensor IndexSelectCat::empty() const {
  c10::SymInt total = 0;
  for (size_t i = 0; i < sources.size(); ++i) total += indices[i].sym_size(0) * sources[i].sym_size(1);
  return empty_result({total}, sources[0].options());
}

void IndexSelectCatBackward::check() const {
  const Check check(kName);
  check.floating("grad_out", grad_out);
  if (rows.size() != indices.size() || widths.size() != indices.size()) {
    check.fail("len(rows), len(widths)", std::to_string(rows.size()) + ", " + std::to_string(widths.size()),
               std::to_string(indices.size()) + ", that of indices", "give the shape of every source");
  }
  c10::SymInt total = 0;
  for (size_t i = 0; i < indices.size(); ++i) total += indices[i].sym_size(0) * widths[i];
  check.shape("grad_out", grad_out, {total}, "it has the shape of the result");
}

IndexSelectCatBackward::Result IndexSelectCatBackward::empty() const {
  Result grads;
  for (size_t i = 0; i < indices.size(); ++i) grads.push_back(empty_result({rows[i], widths[i]}, grad_out.options()));
  return grads;
}

void ScaledIndexAdd::check() const {
  const Check check("scaled_index_add");
  check_rows(check, input, "input", index, source, scaling);
  check.no_overlap("input", input);
}

void ScaledIndexAddBackward::check() const { check_rows(Check(kName), grad_out, "grad_out", index, source, scaling); }

at::Tensor index_select_cat(at::TensorList sources, at::TensorList indices) {
  const IndexSelectCat args{sources, indices};
  if (sources.empty()) args.check();  // nothing to dispatch on
  return call(args);
}

const at::Tensor& scaled_index_add(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                                   const OptionalTensor& scaling, double alpha) {
  call(ScaledIndexAdd{input, index, source, scaling, alpha});
  return input;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  using namespace xformers::ops;
  define<IndexSelectCat, IndexSelectCatBackward, ScaledIndexAdd, ScaledIndexAddBackward>(m);
}
