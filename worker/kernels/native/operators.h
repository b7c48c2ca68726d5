// The operators of the library, and the kernels that they use on this CPU.
#pragma once

#include <ATen/ATen.h>

#include <cstdint>
#include <optional>
#include <string>
#include <tuple>

#include "attention.h"
#include "linear.h"
#include "rounding.h"
#include "sampling.h"

namespace firstlight {

// Sets of instructions that kernels are compiled for; each contains those before it.
enum class Level { kAvx2, kAvx512, kAvx512Bf16 };

// The kernels of the level in use.
const LinearKernels& linear_kernels();
const AttentionKernels& attention_kernels();
const RoundingKernels& rounding_kernels();
const SamplingKernels& sampling_kernels();

// The levels that this CPU has, the best first; empty where it has none.
std::string instruction_sets();

// Uses a level that this CPU has, by its name; from now on, in every thread.
void use_instruction_set(const std::string& name);

// Codes, scales and, at 4 bits, offsets of finite numbers: see worker/weights/quantized.py.
std::tuple<at::Tensor, at::Tensor> round_int8(const at::Tensor& weight);
std::tuple<at::Tensor, at::Tensor, at::Tensor> round_int4(
    const at::Tensor& weight, const std::optional<at::Tensor>& importance);

at::Tensor pack_bf16(const at::Tensor& weight);
at::Tensor pack_int8(const at::Tensor& codes);
at::Tensor pack_int4(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& offset);
at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, int64_t kind, int64_t outputs,
                  const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& bias,
                  int64_t prologue, const std::optional<at::Tensor>& norm, double epsilon,
                  int64_t gate, const std::optional<at::Tensor>& residual);
// A product that will come.
struct Product {
  at::Tensor packed;
  int64_t outputs;
  Gate gate;
};
// The same as `linear`, where the product after it is known.
at::Tensor linear_before(const Product* next, const at::Tensor& x, const at::Tensor& packed,
                         int64_t kind, int64_t outputs, const std::optional<at::Tensor>& scale,
                         const std::optional<at::Tensor>& bias, int64_t prologue,
                         const std::optional<at::Tensor>& norm, double epsilon, int64_t gate,
                         const std::optional<at::Tensor>& residual);
at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                    const std::optional<at::Tensor>& residual);

// Bytes that one kv head's keys and values of a block take: zeros are its empty state.
int64_t kv_block_bytes(int64_t block_size, int64_t head_dim, bool is_int8);
at::Tensor attend(const at::Tensor& qkv, at::Tensor pool, const at::Tensor& tables,
                  const at::Tensor& rows, const at::Tensor& starts, const at::Tensor& ends,
                  const at::Tensor& rope, const std::optional<at::Tensor>& query_norm,
                  const std::optional<at::Tensor>& key_norm, double epsilon, double scale,
                  double softcap, int64_t window, int64_t heads, int64_t kv_heads,
                  int64_t head_dim, int64_t block_size, bool is_int8);

// A token a row, or why there is none: -1 not finite, -2 nothing allowed. Logits change meanwhile.
at::Tensor choose(const at::Tensor& logits, const at::Tensor& numbers,
                  const at::Tensor& bias_starts, const at::Tensor& bias_tokens,
                  const at::Tensor& bias_values, const at::Tensor& occurred_starts,
                  const at::Tensor& occurred_tokens, const at::Tensor& occurred_counts,
                  const std::optional<at::Tensor>& masks, const at::Tensor& mask_rows);
// Of the tokens, of the `count` likeliest which they are, and theirs.
std::tuple<at::Tensor, at::Tensor, at::Tensor> log_probabilities(const at::Tensor& logits,
                                                                 const at::Tensor& rows,
                                                                 const at::Tensor& tokens,
                                                                 int64_t count);

}  // namespace firstlight
