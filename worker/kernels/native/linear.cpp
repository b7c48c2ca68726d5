// The operators `pack_*`, `linear` and `rms_norm`: check what they are given and spread the work.
#include "linear.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>
#include <c10/util/Half.h>

#include <algorithm>
#include <cstring>
#include <vector>

#include "operators.h"
#include "threads.h"

namespace firstlight {
namespace {

constexpr int64_t kFewTokens = 4;        // encoded at once, rather than told to other threads
constexpr int64_t kSmallWork = 1 << 15;  // products of numbers done at once
constexpr int64_t kPieces = 16;          // that tokens to encode are divided into

void check(const at::Tensor& tensor, const char* name, at::ScalarType type, int64_t dims) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == type && tensor.dim() == dims &&
                  tensor.is_contiguous(),
              name, " must be a contiguous CPU tensor of ", type, " with ", dims, " dimensions");
}

const float* checked(const std::optional<at::Tensor>& tensor, const char* name,
                     at::IntArrayRef sizes) {
  if (!tensor.has_value()) return nullptr;
  check(*tensor, name, at::kFloat, static_cast<int64_t>(sizes.size()));
  TORCH_CHECK(tensor->sizes() == sizes, name, " must have the shape ", sizes);
  return tensor->const_data_ptr<float>();
}

at::Tensor empty_pack(Kind kind, int64_t outputs, int64_t inputs) {
  return at::zeros({whole(outputs, kBlock), whole(inputs, kGroup), group_bytes(kind)}, at::kByte);
}

// Calls put(output, vector, row, group's bytes) for every output and group.
template <typename Put>
void for_groups(at::Tensor& packed, int64_t outputs, const Put& put) {
  uint8_t* bytes = packed.mutable_data_ptr<uint8_t>();
  const int64_t groups = packed.size(1), size = packed.size(2);
  in_parallel(packed.size(0), [&](int64_t block) {
    const int64_t last = std::min(outputs, (block + 1) * kBlock);
    for (int64_t output = block * kBlock; output < last; ++output) {
      const int64_t row = output % 16, vector = output % kBlock / 16;
      for (int64_t group = 0; group < groups; ++group) {
        put(output, vector, row, group, bytes + (block * groups + group) * size);
      }
    }
  });
}

// Scratch of one thread of callers, as large as its largest step.
struct Scratch {
  std::vector<uint8_t> codes;
  std::vector<float> scales, scaled_sums;
  std::vector<int32_t> surpluses;
};

Tokens tokens_with(Scratch& scratch, const at::Tensor& x, Kind kind, int64_t inputs) {
  const int64_t count = x.size(0), groups = whole(inputs, kGroup);
  const int64_t code_bytes = kind == Kind::kBf16 ? linear_kernels().bf16_code_bytes : 1;
  const size_t bytes = count * groups * kGroup * code_bytes;
  if (scratch.codes.size() < bytes) scratch.codes.resize(bytes);
  if (kind != Kind::kBf16 && scratch.scales.size() < static_cast<size_t>(count * groups)) {
    scratch.scales.resize(count * groups);
    scratch.scaled_sums.resize(count * groups);
    scratch.surpluses.resize(count * groups);
  }
  Tokens tokens = {};
  tokens.x = x.const_data_ptr<float>();
  tokens.stride = x.size(1);
  tokens.inputs = inputs;
  tokens.groups = groups;
  tokens.codes = scratch.codes.data();
  tokens.scales = scratch.scales.data();
  tokens.scaled_sums = scratch.scaled_sums.data();
  tokens.surpluses = scratch.surpluses.data();
  return tokens;
}

void encode(Kind kind, const Tokens& tokens, int64_t first, int64_t last) {
  static thread_local std::vector<float> row;
  const size_t numbers = tokens.groups * kGroup;
  if (row.size() < numbers) row.resize(numbers);
  linear_kernels().encode(kind, tokens, first, last, row.data());
}

// Weights are read fastest in long runs: at 1 token 2 pieces instead of 8 are 13 % of a step. Many
// tokens are arithmetic, which wants to be divided evenly.
int64_t pieces_per_thread(int64_t count) { return count < 32 ? 2 : 4; }

// Blocks of weights as threads take them: in pieces that differ by one block at most, so that
// threads that keep pace end together. The larger ones come first.
struct Pieces {
  int64_t blocks;
  int64_t count;

  int64_t first(int64_t piece) const {
    return piece * (blocks / count) + std::min(piece, blocks % count);
  }
};

Pieces divided(int64_t blocks, int64_t tokens) {
  return {blocks, std::min(blocks, at::get_num_threads() * pieces_per_thread(tokens))};
}

// Few tokens are gated by themselves: their weights are read in one run.
bool is_gated_apart(int64_t count, int64_t width) {
  return count < kFewTokens || width % kBlock != 0;
}

// A product's weights by blocks of its result.
Pieces divided(const Product& product, int64_t tokens) {
  const bool pairs = product.gate != Gate::kNone && !is_gated_apart(tokens, product.outputs / 2);
  return divided(product.packed.size(0) / (pairs ? 2 : 1), tokens);
}

void encode_all(Kind kind, const Tokens& tokens, int64_t count) {
  if (count < kFewTokens) return encode(kind, tokens, 0, count);
  const int64_t few = whole(count, kPieces);
  in_parallel(whole(count, few), [&](int64_t piece) {
    encode(kind, tokens, piece * few, std::min(count, (piece + 1) * few));
  });
}

// Multiplies the encoded tokens with all blocks.
void multiply(Kind kind, const uint8_t* packed, const Tokens& tokens, int64_t count,
              const Outputs& outputs, const Product* next_product) {
  const LinearKernels& kernels = linear_kernels();
  const int64_t blocks = whole(outputs.width, kBlock);
  if (count * tokens.inputs * outputs.outputs < kSmallWork) {
    kernels.multiply(kind, packed, tokens, count, 0, blocks, -1, outputs);
    return;
  }
  const int64_t threads = at::get_num_threads();
  const Pieces pieces = divided(blocks, count);
  if (next_product != nullptr) {
    expect({next_product->packed.const_data_ptr<uint8_t>(),
            divided(*next_product, count).first(1) * next_product->packed.stride(0)});
  }
  in_parallel(pieces.count, [&](int64_t piece) {
    // While threads keep pace, a thread takes every `threads`th piece.
    const int64_t next = piece + threads < pieces.count ? pieces.first(piece + threads) : -1;
    kernels.multiply(kind, packed, tokens, count, pieces.first(piece), pieces.first(piece + 1),
                     next, outputs);
  });
}

// The joined halves of x, [tokens, 2 * width].
at::Tensor joined(const at::Tensor& x, Gate gate) {
  const int64_t count = x.size(0), width = x.size(1) / 2;
  at::Tensor y = at::empty({count, width}, x.options());
  const int64_t few = std::max<int64_t>(1, kSmallWork / std::max<int64_t>(1, width));
  in_parallel(whole(count, few), [&](int64_t piece) {
    linear_kernels().join(gate, x.const_data_ptr<float>(), width, piece * few,
                          std::min(count, (piece + 1) * few), y.mutable_data_ptr<float>());
  });
  return y;
}

}  // namespace

at::Tensor pack_bf16(const at::Tensor& weight) {
  check(weight, "weight", at::kBFloat16, 2);
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const auto* from = static_cast<const uint16_t*>(weight.const_data_ptr());
  at::Tensor packed = empty_pack(Kind::kBf16, outputs, inputs);
  for_groups(packed, outputs,
             [&](int64_t output, int64_t vector, int64_t row, int64_t group, uint8_t* bytes) {
               auto* to = reinterpret_cast<uint16_t*>(bytes) + vector * 32 + row * 2;
               const int64_t count = std::min<int64_t>(kGroup, inputs - group * kGroup);
               const uint16_t* numbers = from + output * inputs + group * kGroup;
               for (int64_t i = 0; i < count; ++i) to[i / 2 * 64 + i % 2] = numbers[i];
             });
  return packed;
}

at::Tensor pack_int8(const at::Tensor& codes) {
  check(codes, "codes", at::kChar, 2);
  const int64_t outputs = codes.size(0), inputs = codes.size(1);
  const int8_t* from = codes.const_data_ptr<int8_t>();
  at::Tensor packed = empty_pack(Kind::kInt8, outputs, inputs);
  packed.fill_(128);  // zero, with its surplus
  for_groups(packed, outputs,
             [&](int64_t output, int64_t vector, int64_t row, int64_t group, uint8_t* bytes) {
               uint8_t* to = bytes + vector * 64 + row * 4;
               const int64_t count = std::min<int64_t>(kGroup, inputs - group * kGroup);
               const int8_t* numbers = from + output * inputs + group * kGroup;
               for (int64_t i = 0; i < count; ++i) {
                 to[i / 4 * 128 + i % 4] = static_cast<uint8_t>(numbers[i] + 128);
               }
             });
  return packed;
}

at::Tensor pack_int4(const at::Tensor& codes, const at::Tensor& scale, const at::Tensor& offset) {
  check(codes, "codes", at::kByte, 2);
  const int64_t outputs = codes.size(0), inputs = codes.size(1);
  const int64_t groups = whole(inputs, kGroup);
  const float* scales = checked(scale, "scale", {outputs, groups});
  const float* offsets = checked(offset, "offset", {outputs, groups});
  const uint8_t* from = codes.const_data_ptr<uint8_t>();
  at::Tensor packed = empty_pack(Kind::kInt4, outputs, inputs);
  for_groups(packed, outputs,
             [&](int64_t output, int64_t vector, int64_t row, int64_t group, uint8_t* bytes) {
               uint8_t* to = bytes + vector * 256 + row * 4;
               const int64_t count = std::min<int64_t>(kGroup, inputs - group * kGroup);
               const uint8_t* numbers = from + output * inputs + group * kGroup;
               for (int64_t i = 0; i < count; ++i) {
                 const int64_t quad = i / 4;
                 const uint8_t nibble = numbers[i] & 15;
                 to[quad % 4 * 64 + i % 4] |= quad < 4 ? nibble : nibble << 4;
               }
               auto* halves = reinterpret_cast<c10::Half*>(bytes + 512 + vector * 64);
               halves[row] = scales[output * groups + group];
               halves[16 + row] = offsets[output * groups + group];
             });
  return packed;
}

at::Tensor linear(const at::Tensor& x, const at::Tensor& packed, int64_t kind, int64_t outputs,
                  const std::optional<at::Tensor>& scale, const std::optional<at::Tensor>& bias,
                  int64_t prologue, const std::optional<at::Tensor>& norm, double epsilon,
                  int64_t gate, const std::optional<at::Tensor>& residual) {
  return linear_before(nullptr, x, packed, kind, outputs, scale, bias, prologue, norm, epsilon,
                       gate, residual);
}

at::Tensor linear_before(const Product* next, const at::Tensor& x, const at::Tensor& packed,
                         int64_t kind_number, int64_t outputs,
                         const std::optional<at::Tensor>& scale,
                         const std::optional<at::Tensor>& bias, int64_t prologue_number,
                         const std::optional<at::Tensor>& norm, double epsilon,
                         int64_t gate_number, const std::optional<at::Tensor>& residual) {
  TORCH_CHECK(kind_number == 16 || kind_number == 8 || kind_number == 4, "unknown kind");
  TORCH_CHECK(prologue_number == 0 || prologue_number == 1, "unknown prologue");
  TORCH_CHECK(gate_number >= 0 && gate_number <= 2, "unknown gate");
  const Kind kind = static_cast<Kind>(kind_number);
  const Prologue prologue = static_cast<Prologue>(prologue_number);
  const Gate gate = static_cast<Gate>(gate_number);
  check(x, "x", at::kFloat, 2);
  check(packed, "packed", at::kByte, 3);
  const int64_t count = x.size(0), inputs = x.size(1);
  const bool is_gated = gate != Gate::kNone;
  TORCH_CHECK(!is_gated || outputs % 2 == 0, "gates and up must be equally wide");
  TORCH_CHECK(!is_gated || !residual.has_value(), "nothing is added to gated outputs");
  TORCH_CHECK(packed.size(0) == whole(outputs, kBlock) && packed.size(1) == whole(inputs, kGroup) &&
                  packed.size(2) == group_bytes(kind),
              "packed weights of shape ", packed.sizes(), " are not for ", inputs, " inputs and ",
              outputs, " outputs of this kind");
  TORCH_CHECK(kind != Kind::kInt8 || scale.has_value(), "int8 weights need scale");
  TORCH_CHECK(prologue != Prologue::kNorm || norm.has_value(), "a norm needs its weight");

  static thread_local Scratch scratch;
  Tokens tokens = tokens_with(scratch, x, kind, inputs);
  tokens.prologue = prologue;
  tokens.norm = checked(norm, "norm", {inputs});
  tokens.epsilon = static_cast<float>(epsilon);
  const bool gates_apart = is_gated && is_gated_apart(count, outputs / 2);
  const int64_t width = is_gated && !gates_apart ? outputs / 2 : outputs;
  at::Tensor y = at::empty({count, width}, x.options());
  const Outputs out = {y.mutable_data_ptr<float>(),
                       width,
                       outputs,
                       checked(scale, "scale", {outputs}),
                       checked(bias, "bias", {outputs}),
                       checked(residual, "residual", {count, outputs}),
                       gates_apart ? Gate::kNone : gate};
  if (count > 0) {
    encode_all(kind, tokens, count);
    multiply(kind, packed.const_data_ptr<uint8_t>(), tokens, count, out, next);
  }
  return gates_apart ? joined(y, gate) : y;
}

at::Tensor rms_norm(const at::Tensor& x, const at::Tensor& weight, double epsilon,
                    const std::optional<at::Tensor>& residual) {
  check(x, "x", at::kFloat, 2);
  const int64_t count = x.size(0), inputs = x.size(1);
  Tokens tokens = {};
  tokens.x = x.const_data_ptr<float>();
  tokens.stride = inputs;
  tokens.inputs = inputs;
  tokens.norm = checked(weight, "weight", {inputs});
  tokens.epsilon = static_cast<float>(epsilon);
  at::Tensor y = at::empty_like(x);
  const Outputs out = {y.mutable_data_ptr<float>(),
                       inputs,
                       inputs,
                       nullptr,
                       nullptr,
                       checked(residual, "residual", {count, inputs}),
                       Gate::kNone};
  const int64_t few = std::max<int64_t>(1, kSmallWork / std::max<int64_t>(1, inputs));
  in_parallel(whole(count, few), [&](int64_t piece) {
    linear_kernels().normalise(tokens, piece * few, std::min(count, (piece + 1) * few), out);
  });
  return y;
}

}  // namespace firstlight
