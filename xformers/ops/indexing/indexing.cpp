// Schemas, public functions and checks.
#include "xformers/ops/indexing/indexing.h"

#include <torch/library.h>

#include <string>

#include "xformers/ops/indexing/indexing_op.h"

namespace xformers::ops {
namespace {

std::string item(const char* list, size_t i) { return std::string(list) + "[" + std::to_string(i) + "]"; }

void check_index(const ArgumentCheck& check, const char* name, const at::Tensor& index) {
  check.dims(name, index, 1, "[n] int64");
  if (index.scalar_type() != at::kLong) {
    check.fail(std::string(name) + ".dtype", describe_dtype(index.scalar_type()), "int64", "convert it with .long()");
  }
}

// index_select_cat's and scaled_index_add's operands agree in everything but their first dimension.
void check_rows(const ArgumentCheck& check, const at::Tensor& whole, const char* whole_name, const at::Tensor& index,
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

void check_index_select_cat(at::TensorList sources, at::TensorList indices) {
  const ArgumentCheck check("index_select_cat");
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

void check_index_select_cat_backward(const at::Tensor& grad_out, at::TensorList indices, c10::SymIntArrayRef rows,
                                     c10::SymIntArrayRef widths) {
  const ArgumentCheck check("index_select_cat_backward");
  check.floating("grad_out", grad_out);
  if (rows.size() != indices.size() || widths.size() != indices.size()) {
    check.fail("len(rows), len(widths)", std::to_string(rows.size()) + ", " + std::to_string(widths.size()),
               std::to_string(indices.size()) + ", that of indices", "give the shape of every source");
  }
  c10::SymInt total = 0;
  for (size_t i = 0; i < indices.size(); ++i) total += indices[i].sym_size(0) * widths[i];
  check.shape("grad_out", grad_out, {total}, "it has the shape of the result");
}

void check_scaled_index_add(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                            const OptionalTensor& scaling) {
  const ArgumentCheck check("scaled_index_add");
  check_rows(check, input, "input", index, source, scaling);
  check.no_overlap("input", input);
}

void check_scaled_index_add_backward(const at::Tensor& grad_out, const at::Tensor& index, const at::Tensor& source,
                                     const OptionalTensor& scaling) {
  check_rows(ArgumentCheck("scaled_index_add_backward"), grad_out, "grad_out", index, source, scaling);
}

XFORMERS_TYPED_OP(index_select_cat_op, IndexSelectCat, "index_select_cat")
XFORMERS_TYPED_OP(index_select_cat_backward_op, IndexSelectCatBackward, "index_select_cat_backward")
XFORMERS_TYPED_OP(scaled_index_add_op, ScaledIndexAdd, "scaled_index_add_")
XFORMERS_TYPED_OP(scaled_index_add_backward_op, ScaledIndexAddBackward, "scaled_index_add_backward")

at::Tensor index_select_cat(at::TensorList sources, at::TensorList indices) {
  if (sources.empty()) check_index_select_cat(sources, indices);  // nothing to dispatch on
  return index_select_cat_op().call(sources, indices);
}

const at::Tensor& scaled_index_add(const at::Tensor& input, const at::Tensor& index, const at::Tensor& source,
                                   const OptionalTensor& scaling, double alpha) {
  scaled_index_add_op().call(input, index, source, scaling, alpha);
  return input;
}

}  // namespace xformers::ops

TORCH_LIBRARY_FRAGMENT(xformers, m) {
  const std::vector<at::Tag> tags = {at::Tag::pt2_compliant_tag};
  m.def("index_select_cat(Tensor[] sources, Tensor[] indices) -> Tensor", tags);
  m.def("index_select_cat_backward(Tensor grad_out, Tensor[] indices, SymInt[] rows, SymInt[] widths) -> Tensor[]",
        tags);
  m.def("scaled_index_add_(Tensor(a!) input, Tensor index, Tensor source, Tensor? scaling=None, float alpha=1.0) -> ()",
        tags);
  m.def(
      "scaled_index_add_backward(Tensor grad_out, Tensor index, Tensor source, Tensor? scaling=None, float alpha=1.0, "
      "bool need_dsource=True, bool need_dscaling=True) -> (Tensor dsource, Tensor dscaling)",
      tags);
}
