// Registers the operators with torch, and chooses kernels by what the CPU can do.
#include "operators.h"

#include <torch/custom_class.h>
#include <torch/library.h>

#include <array>
#include <atomic>

#include "program.h"

namespace firstlight {

extern const LinearKernels linear_avx2, linear_avx512, linear_avx512bf16;
extern const AttentionKernels attention_avx2, attention_avx512, attention_avx512bf16;
extern const RoundingKernels rounding_avx2, rounding_avx512, rounding_avx512bf16;
extern const SamplingKernels sampling_avx2, sampling_avx512, sampling_avx512bf16;

namespace {

constexpr std::array<const char*, 3> kNames = {"avx2", "avx512", "avx512bf16"};

bool is_available(Level level) {
  switch (level) {
    case Level::kAvx2:
      return __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") &&
             __builtin_cpu_supports("f16c");
    case Level::kAvx512:
      return is_available(Level::kAvx2) && __builtin_cpu_supports("avx512f") &&
             __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512vl") &&
             __builtin_cpu_supports("avx512dq") && __builtin_cpu_supports("avx512vnni");
    case Level::kAvx512Bf16:
      return is_available(Level::kAvx512) && __builtin_cpu_supports("avx512bf16");
  }
  return false;
}

Level best_level() {
  for (Level level : {Level::kAvx512Bf16, Level::kAvx512}) {
    if (is_available(level)) return level;
  }
  return Level::kAvx2;
}

std::atomic<Level> level_in_use = best_level();

}  // namespace

const LinearKernels& linear_kernels() {
  switch (level_in_use.load(std::memory_order_relaxed)) {
    case Level::kAvx2:
      return linear_avx2;
    case Level::kAvx512:
      return linear_avx512;
    case Level::kAvx512Bf16:
      break;
  }
  return linear_avx512bf16;
}

const AttentionKernels& attention_kernels() {
  switch (level_in_use.load(std::memory_order_relaxed)) {
    case Level::kAvx2:
      return attention_avx2;
    case Level::kAvx512:
      return attention_avx512;
    case Level::kAvx512Bf16:
      break;
  }
  return attention_avx512bf16;
}

const RoundingKernels& rounding_kernels() {
  switch (level_in_use.load(std::memory_order_relaxed)) {
    case Level::kAvx2:
      return rounding_avx2;
    case Level::kAvx512:
      return rounding_avx512;
    case Level::kAvx512Bf16:
      break;
  }
  return rounding_avx512bf16;
}

const SamplingKernels& sampling_kernels() {
  switch (level_in_use.load(std::memory_order_relaxed)) {
    case Level::kAvx2:
      return sampling_avx2;
    case Level::kAvx512:
      return sampling_avx512;
    case Level::kAvx512Bf16:
      break;
  }
  return sampling_avx512bf16;
}

std::string instruction_sets() {
  std::string names;
  for (Level level : {Level::kAvx512Bf16, Level::kAvx512, Level::kAvx2}) {
    if (!is_available(level)) continue;
    if (!names.empty()) names += ' ';
    names += kNames[static_cast<size_t>(level)];
  }
  return names;
}

void use_instruction_set(const std::string& name) {
  for (Level level : {Level::kAvx2, Level::kAvx512, Level::kAvx512Bf16}) {
    if (name != kNames[static_cast<size_t>(level)]) continue;
    TORCH_CHECK(is_available(level), "this CPU has no ", name);
    level_in_use = level;
    return;
  }
  TORCH_CHECK(false, "there are no kernels for ", name);
}

}  // namespace firstlight

TORCH_LIBRARY(firstlight, library) {
  library.def("instruction_sets() -> str", firstlight::instruction_sets);
  library.def("use_instruction_set(str name) -> ()", firstlight::use_instruction_set);
  library.def("round_int8(Tensor weight) -> (Tensor codes, Tensor scale)");
  library.def(
      "round_int4(Tensor weight, Tensor? importance) -> (Tensor codes, Tensor scale, Tensor offset)");
  library.def("pack_bf16(Tensor weight) -> Tensor");
  library.def("pack_int8(Tensor codes) -> Tensor");
  library.def("pack_int4(Tensor codes, Tensor scale, Tensor offset) -> Tensor");
  library.def(
      "linear(Tensor x, Tensor packed, int kind, int outputs, Tensor? scale, Tensor? bias, "
      "int prologue, Tensor? norm, float epsilon, int gate, Tensor? residual) -> Tensor");
  library.def("rms_norm(Tensor x, Tensor weight, float epsilon, Tensor? residual) -> Tensor");
  library.def("kv_block_bytes(int block_size, int head_dim, bool int8) -> int",
              firstlight::kv_block_bytes);
  library.def(
      "attend(Tensor qkv, Tensor(a!) pool, Tensor tables, Tensor rows, Tensor starts, "
      "Tensor ends, Tensor rope, Tensor? query_norm, Tensor? key_norm, float epsilon, "
      "float scale, float softcap, int window, int heads, int kv_heads, int head_dim, "
      "int block_size, bool int8) -> Tensor");
  library.class_<firstlight::Program>("Program")
      .def(torch::init<>())
      .def("linear", &firstlight::Program::linear)
      .def("rms_norm", &firstlight::Program::rms_norm)
      .def("attend", &firstlight::Program::attend)
      .def("run", &firstlight::Program::run);
  library.def(
      "choose(Tensor logits, Tensor numbers, Tensor bias_starts, Tensor bias_tokens, "
      "Tensor bias_values, Tensor occurred_starts, Tensor occurred_tokens, "
      "Tensor occurred_counts, Tensor? masks, Tensor mask_rows) -> Tensor");
  library.def(
      "log_probabilities(Tensor logits, Tensor rows, Tensor tokens, int count) "
      "-> (Tensor, Tensor, Tensor)");
}

TORCH_LIBRARY_IMPL(firstlight, CPU, library) {
  library.impl("round_int8", firstlight::round_int8);
  library.impl("round_int4", firstlight::round_int4);
  library.impl("pack_bf16", firstlight::pack_bf16);
  library.impl("pack_int8", firstlight::pack_int8);
  library.impl("pack_int4", firstlight::pack_int4);
  library.impl("linear", firstlight::linear);
  library.impl("rms_norm", firstlight::rms_norm);
  library.impl("attend", firstlight::attend);
  library.impl("choose", firstlight::choose);
  library.impl("log_probabilities", firstlight::log_probabilities);
}
