// What the linear operators (linear.cpp) and their kernels (linear_kernels.cpp) tell each other.
//
// linear.cpp is compiled once, knows torch, checks and spreads the work over threads.
// linear_kernels.cpp is compiled once per instruction set and knows numbers only. Nothing here may
// become a function that the linker merges between the two.
#pragma once

#include <cstdint>

namespace firstlight {

// Weights lie in blocks of 32 outputs, inputs in groups of 32; a block's group is contiguous. Two
// vectors (rows 0 to 15, rows 16 to 31) alternate along the inputs:
//
//   bfloat16  [16 pairs of inputs][2 vectors][16 outputs][2 inputs]               2048 bytes
//   int8      [8 quads of inputs][2 vectors][16 outputs][4 inputs], code + 128    1024 bytes
//   int4      [2 vectors][4][16 outputs][4 inputs] nibbles: quad j of 0..3 low, j + 4 high
//             [2 vectors][float16 scale [16 outputs], float16 offset [16 outputs]]  640 bytes
//
// What is missing to whole blocks and groups is filled with weights of zero.
constexpr int kBlock = 32;
constexpr int kGroup = 32;

enum class Kind : int { kInt4 = 4, kInt8 = 8, kBf16 = 16 };

static inline int64_t group_bytes(Kind kind) {
  return kind == Kind::kBf16 ? 2048 : kind == Kind::kInt8 ? 1024 : 640;
}

static inline int64_t whole(int64_t count, int64_t of) { return (count + of - 1) / of; }

enum class Prologue : int { kNone = 0, kNorm = 1 };

// What joins the two halves of a product's outputs, gates and up: activation(gate) * up.
enum class Gate : int { kNone = 0, kSilu = 1, kGelu = 2 };

// The tokens, as they come and as they are multiplied. Codes are int8 or what bfloat16 holds (see
// LinearKernels), `groups` * 32 a token; of int8 each group has a scale, scale * (sum of its codes),
// and -128 * that sum.
struct Tokens {
  const float* x;
  int64_t stride;  // of x, in numbers
  int64_t inputs;
  int64_t groups;
  Prologue prologue;
  const float* norm;
  float epsilon;

  void* codes;
  float* scales;
  float* scaled_sums;
  int32_t* surpluses;
};

struct Outputs {
  float* y;
  int64_t width;  // numbers of a token: `outputs`, or half of them where a gate joins them
  int64_t outputs;
  const float* scale;     // int8: one an output
  const float* bias;      // or null
  const float* residual;  // as y, or null
  Gate gate;              // joins whole blocks only: `width` is a multiple of kBlock
};

struct LinearKernels {
  int64_t bf16_code_bytes;  // 2 of bfloat16, 4 where it is kept as floats

  // Prologue and coding of tokens `first` to `last` - 1; `row` holds groups * 32 numbers.
  void (*encode)(Kind, const Tokens&, int64_t first, int64_t last, float* row);

  // All of `count` tokens times the weights of blocks `first` to `last` - 1 of y. The thread's next
  // block after these is probably `next`; -1: none.
  void (*multiply)(Kind, const uint8_t* packed, const Tokens&, int64_t count, int64_t first,
                   int64_t last, int64_t next, const Outputs&);

  // y = activation(gate) * up of tokens `first` to `last` - 1 of x, [2 * width] a token.
  void (*join)(Gate, const float* x, int64_t width, int64_t first, int64_t last, float* y);

  // y = norm(x) (+ residual) of tokens `first` to `last` - 1.
  void (*normalise)(const Tokens&, int64_t first, int64_t last, const Outputs&);
};

}  // namespace firstlight
