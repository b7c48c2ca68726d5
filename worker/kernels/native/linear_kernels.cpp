// Products of tokens with packed weights, compiled once per instruction set.
//
// A tile is 32 outputs of a few tokens, its sums in registers over all inputs: each vector of weights
// is loaded once for all tokens of the tile, each number of a token is broadcast once for both
// vectors, or once for each where registers are few. A token's sums add up in the same order in tiles
// of any height, so that its bits do not depend on its company.
#include <algorithm>

#include "level.h"
#include "linear.h"
#include "linear_groups.h"
#include "linear_tokens.h"

namespace firstlight {
namespace {

constexpr int kVectors = kBlock / 16;
// Rows of logits, of so many tokens, are larger than a core's caches: they are written past them.
constexpr int64_t kFewestLogits = 1 << 15, kFewestRowsOfLogits = 8;

// Where a block's outputs go: from its first one of the first token on. Gates, where given, are
// those of the same places, in rows of kBlock.
struct Target {
  float* y;
  int64_t stride;
  const float* residual;
  const float* gates;
  bool is_past;  // the caches

  Target from(int64_t token) const {
    return {y + token * stride, stride, residual == nullptr ? nullptr : residual + token * stride,
            gates == nullptr ? nullptr : gates + token * kBlock, is_past};
  }
};

// VECTORS vectors of a block's outputs, from `first` on, of ROWS tokens.
template <Kind KIND, int ROWS, int VECTORS>
void multiply_vectors(const uint8_t* weights, int first, const Tokens& tokens, int64_t token,
                      int64_t block, const Outputs& outputs, const Target& target,
                      const Ahead& ahead) {
  Accumulators<VECTORS, ROWS> sums;
  for (auto& vector : sums) {
    for (Floats& sum : vector) sum = all(0.0f);
  }
  if constexpr (KIND == Kind::kBf16) {
    add_bf16_groups<VECTORS, ROWS>(weights, first, tokens, token, ahead, sums);
  } else {
    for (int64_t group = 0; group < tokens.groups; ++group) {
      const uint8_t* here = weights + group * group_bytes(KIND);
      if constexpr (ROWS >= kFewestRowsBesideOthers<KIND>) ahead.fetch(group);
      if constexpr (KIND == Kind::kInt8) {
        add_int8_group<VECTORS, ROWS>(here, first, tokens, token, group, sums);
      } else {
        add_int4_group<VECTORS, ROWS>(here, first, tokens, token, group, sums);
      }
    }
  }
#pragma GCC unroll 2
  for (int vector = 0; vector < VECTORS; ++vector) {
    const int64_t offset = (first + vector) * 16, output = block * kBlock + offset;
    const int count = static_cast<int>(std::min<int64_t>(16, outputs.outputs - output));
    if (count <= 0) break;
    const auto of_outputs = [&](const float* from) {
      if (count == 16) return load(from);
      float numbers[16] = {};
      std::copy(from, from + count, numbers);
      return load(numbers);
    };
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      const int64_t place = row * target.stride + offset;
      Floats y = sums[vector][row];
      if constexpr (KIND == Kind::kInt8) y = multiply(y, of_outputs(outputs.scale + output));
      if (outputs.bias != nullptr) y = add(y, of_outputs(outputs.bias + output));
      if (target.gates != nullptr) {
        y = joined(outputs.gate, load(target.gates + row * kBlock + offset), y);
      }
      if (target.residual != nullptr) y = add(y, of_outputs(target.residual + place));
      if (target.is_past) {
        store_past(target.y + place, y);
      } else if (count == 16) {
        store(target.y + place, y);
      } else {
        store_first(target.y + place, y, count);
      }
    }
  }
}

template <Kind KIND, int ROWS>
void multiply_tile(const uint8_t* weights, const Tokens& tokens, int64_t token, int64_t block,
                   const Outputs& outputs, const Target& target, const Ahead& ahead) {
  if constexpr (ROWS <= kMostRowsOfWholeBlocks) {
    multiply_vectors<KIND, ROWS, kVectors>(weights, 0, tokens, token, block, outputs, target,
                                           ahead);
  } else {
    multiply_vectors<KIND, ROWS, 1>(weights, 0, tokens, token, block, outputs, target, ahead);
    Ahead more = ahead;
    more.advance(tokens.groups);
    multiply_vectors<KIND, ROWS, 1>(weights, 1, tokens, token, block, outputs, target, more);
  }
}

// Chooses the tile of `rows` tokens, ROWS at most.
template <Kind KIND, int ROWS>
void multiply_rows(int64_t rows, const uint8_t* weights, const Tokens& tokens, int64_t token,
                   int64_t block, const Outputs& outputs, const Target& target,
                   const Ahead& ahead) {
  if constexpr (ROWS > 1) {
    if (rows < ROWS) {
      return multiply_rows<KIND, ROWS - 1>(rows, weights, tokens, token, block, outputs, target,
                                           ahead);
    }
  }
  multiply_tile<KIND, ROWS>(weights, tokens, token, block, outputs, target, ahead);
}

template <Kind KIND>
void multiply_block(const uint8_t* weights, const uint8_t* next_weights, const Tokens& tokens,
                    int64_t first, int64_t last, int64_t block, const Outputs& outputs,
                    const Target& target) {
  // Tiles of about equal height: 14 tokens go as 7 and 7, not as 12 and 2.
  int64_t tiles = whole(last - first, kMostRows<KIND>);
  const int64_t passes_per_tile =
      kMostRows<KIND> > kMostRowsOfWholeBlocks && whole(last - first, tiles) > kMostRowsOfWholeBlocks
          ? kVectors
          : 1;
  const int64_t passes = tiles * passes_per_tile;
  // One pass alone waits for memory only, and is best read ahead as it goes.
  Ahead ahead;
  if (passes > 1 && next_weights != nullptr) {
    ahead = {next_weights, whole(group_bytes(KIND) / kLine, passes)};
  }
  for (int64_t token = first; token < last; --tiles) {
    const int64_t rows = whole(last - token, tiles);
    multiply_rows<KIND, kMostRows<KIND>>(rows, weights, tokens, token, block, outputs,
                                         target.from(token - first), ahead);
    token += rows;
    ahead.advance(passes_per_tile * tokens.groups);
  }
}

template <Kind KIND>
void multiply_blocks(const uint8_t* packed, const Tokens& tokens, int64_t count, int64_t first,
                     int64_t last, int64_t next, const Outputs& outputs) {
  const int64_t block_bytes = tokens.groups * group_bytes(KIND);
  const int64_t rows = whole(count, whole(count, kRowsAtOnce));
  // A block of gates stays in the cache until the block of up is multiplied, right after it.
  const bool is_gated = outputs.gate != Gate::kNone;
  const bool is_aligned =
      outputs.width % 16 == 0 && reinterpret_cast<uintptr_t>(outputs.y) % kLine == 0;
  const bool is_past =
      is_aligned && count >= kFewestRowsOfLogits && outputs.width >= kFewestLogits;
  float gates[kRowsAtOnce * kBlock];
  for (int64_t token = 0; token < count; token += rows) {
    const int64_t end = std::min(count, token + rows);
    const auto multiply = [&](int64_t block, int64_t following, const Target& target) {
      const uint8_t* ahead = following < 0 ? nullptr : packed + following * block_bytes;
      multiply_block<KIND>(packed + block * block_bytes, ahead, tokens, token, end, block, outputs,
                           target);
    };
    // Later tokens find the blocks that the first ones fetched.
    const bool is_first = token == 0, is_last = end == count;
    for (int64_t block = first; block < last; ++block) {
      const int64_t following = block + 1 < last ? (is_first ? block + 1 : -1)
                                : is_last        ? next
                                                 : -1;
      const int64_t place = token * outputs.width + block * kBlock;
      Target target = {outputs.y + place, outputs.width, nullptr, nullptr, is_past};
      if (outputs.residual != nullptr) target.residual = outputs.residual + place;
      if (is_gated) {
        const int64_t up = block + outputs.width / kBlock;
        multiply(block, is_first ? up : -1, {gates, kBlock, nullptr, nullptr, false});
        target.gates = gates;
        multiply(up, following, target);
      } else {
        multiply(block, following, target);
      }
    }
  }
  if (is_past) _mm_sfence();  // before others are told that it is there
}

void multiply_all(Kind kind, const uint8_t* packed, const Tokens& tokens, int64_t count,
                  int64_t first, int64_t last, int64_t next, const Outputs& outputs) {
  switch (kind) {
    case Kind::kBf16:
      return multiply_blocks<Kind::kBf16>(packed, tokens, count, first, last, next, outputs);
    case Kind::kInt8:
      return multiply_blocks<Kind::kInt8>(packed, tokens, count, first, last, next, outputs);
    case Kind::kInt4:
      return multiply_blocks<Kind::kInt4>(packed, tokens, count, first, last, next, outputs);
  }
}

}  // namespace

extern const LinearKernels FIRSTLIGHT_TABLE(linear, FIRSTLIGHT_LEVEL);
const LinearKernels FIRSTLIGHT_TABLE(linear, FIRSTLIGHT_LEVEL) = {
    sizeof(Bf16Code), encode, multiply_all, join, normalise};

}  // namespace firstlight
