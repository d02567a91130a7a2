// Checks of the layouts and formats in which keys may come: packed, paged, quantised.
#include <limits>
#include <string>

#include "xformers/kernels/params/kv_rows.h"
#include "xformers/ops/attention/attention_check.h"
#include "xformers/ops/common/expanded.h"

namespace xformers::ops {
namespace {

void check_int32(const AttentionArgs& args, const char* name, const OptionalTensor& t, const char* size_text,
                 const c10::SymInt* size) {
  const AttentionCheck check = check_of(args);
  const std::string title(name);
  if (!t) check.fail(title, "None", "int32 " + std::string(size_text), "packed sequences need offsets of both sides");
  if (t->scalar_type() != at::kInt || t->dim() != 1 || !t->is_contiguous()) {
    check.fail(title, describe(*t), "contiguous int32 " + std::string(size_text), "build it with torch.int32");
  }
  if (t->device() != args.query.device()) {
    check.fail(title + ".device", t->device().str(), args.query.device().str(),
               "move the bias with attn_bias.to(query.device), or build it without a device");
  }
  if (size) check.equal(name, t->sym_size(0), *size, "give one entry per sequence to every list of lengths");
}

void check_pages(const AttentionArgs& args, const c10::SymInt& sequences) {
  const AttentionCheck check = check_of(args);
  const at::Tensor& table = *args.page_table;
  if (table.scalar_type() != at::kInt || table.dim() != 2 || !has_unit_last_stride(table)) {
    check.fail("page_table", describe(table) + (table.dim() == 2 ? " of stride " + c10::str(table.sym_strides()) : ""),
               "int32 [sequences, pages] whose last stride is 1", "build it with torch.int32");
  }
  check.equal("page_table.sequences", table.sym_size(0), sequences, "give one row of pages per sequence");
  if (table.device() != args.query.device()) {
    check.fail("page_table.device", table.device().str(), args.query.device().str(), "move it with tensor.to(device)");
  }
  if (args.page_size < 1 || args.page_size > std::numeric_limits<int32_t>::max()) {
    check.fail("page_size", c10::str(args.page_size), "1 or more keys", "give the number of keys in a page");
  }
}

void check_words(const AttentionArgs& args, bool fp8) {
  const AttentionCheck check = check_of(args);
  const c10::SymInt head_dim = args.query.sym_size(-1), words = args.key.sym_size(-1);
  if (fp8) {
    if (!fp8_rows_fit(head_dim)) {
      check.fail("query.head_dim", c10::str(head_dim), "a multiple of 4 beside fp8 keys",
                 "pad the head_dim with zeros");
    }
    check.equal("key.head_dim", words, head_dim / 4, "an fp8 row has one int32 word per 4 elements");
    return;
  }
  if (head_dim % 8 != 0) {
    check.fail("query.head_dim", c10::str(head_dim), "a multiple of 8 beside int4 keys", "pad the head_dim with zeros");
  }
  const c10::SymInt groups = int4_groups(head_dim, words);
  if (!int4_rows_fit(head_dim, groups)) {
    check.fail("the number of int4 groups (key.head_dim - query.head_dim / 8)", c10::str(groups),
               "1, 2, 4 or 8, and a divisor of query.head_dim / 8",
               "a row is one coefficient word per group, then one int32 word per 8 elements");
  }
}

}  // namespace

void check_packed(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  check_int32(args, "cu_seqlens_q", args.cu_seqlens_q, "[sequences + 1]", nullptr);
  const c10::SymInt entries = args.cu_seqlens_q->sym_size(0);
  if (entries == 0) check.fail("cu_seqlens_q", "empty", "[sequences + 1] entries", "start it with 0");
  const c10::SymInt sequences = entries - 1;
  if (args.seqused_k || args.page_table) check_int32(args, "seqused_k", args.seqused_k, "[sequences]", &sequences);
  if (args.page_table) check_pages(args, sequences);
  if (args.cu_seqlens_k || !args.page_table) {
    check_int32(args, "cu_seqlens_k", args.cu_seqlens_k, "[sequences + 1]", args.seqused_k ? nullptr : &entries);
    // Starts alone will do, where lengths are given.
    if (args.seqused_k && args.cu_seqlens_k->sym_size(0) != sequences) {
      check.equal("cu_seqlens_k", args.cu_seqlens_k->sym_size(0), entries,
                  "give one start per sequence, and the total");
    }
  }
  if (args.query.dim() == 3) {
    check.fail("query.ndim", "3", "4 or 5 for packed sequences", "use [1, total, heads, head_dim]");
  }
  check.equal("query.batch", args.query.sym_size(0), 1,
              "packed sequences lie one after the other in one batch row: tensor.flatten(0, 1)[None]");
}

void check_quantized(const AttentionArgs& args) {
  const AttentionCheck check = check_of(args);
  const bool fp8 = args.k_scale_shift || args.v_scale_shift;
  if (!is_quantized(args)) {
    check.fail("key.dtype", describe_dtype(args.key.scalar_type()),
               "int32 for both key and value beside k_scale_shift and v_scale_shift", "leave these out for plain keys");
  }
  check.equal("value.head_dim", args.value.sym_size(-1), args.key.sym_size(-1),
              "quantised keys and values have rows of the same number of int32 words");
  check_words(args, fp8);
  if (!fp8) return;
  const auto rows = args.key.sym_sizes().slice(0, args.key.dim() - 1);
  for (const auto& [name, t] :
       {std::pair{"k_scale_shift", &args.k_scale_shift}, std::pair{"v_scale_shift", &args.v_scale_shift}}) {
    if (!*t || (*t)->scalar_type() != at::kInt || (*t)->device() != args.query.device()) {
      check.fail(name, *t ? describe(**t) : "None",
                 "int32 " + describe_shape(rows) + " on " + args.query.device().str() + ", like its pair",
                 "give one word of fp16 scale (low half) and shift per row of key and of value");
    }
    check.same_shape(name, (*t)->sym_sizes(), rows, "give the shape of key without its last dimension");
  }
}

}  // namespace xformers::ops
