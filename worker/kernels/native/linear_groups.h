// A group of 32 inputs added to a tile's sums, and how tokens are coded for it.
//
// Each instruction set has its own code for a token's numbers, and three functions over them:
// `add_int8_group` and `add_int4_group` take a block's weights of one group, `add_bf16_groups` those
// of all, the tile's vectors from `first` on, its tokens from `token` on, and add to its sums. A
// token's sums add up in the same order in tiles of every size.
#pragma once

#include "linear.h"
#include "linear_tiles.h"
#include "simd.h"

namespace firstlight {
namespace {

template <int VECTORS, int ROWS>
using Accumulators = Floats[VECTORS][ROWS];

// Adds what a group of 4-bit weights gives: (code * scale + offset) times each token's numbers.
template <int VECTORS, int ROWS>
inline void add_scaled_int4(const uint8_t* weights, int first, const Tokens& tokens, int64_t place,
                            const Sums (&products)[VECTORS][ROWS],
                            Accumulators<VECTORS, ROWS>& sums) {
  const uint8_t* halves = weights + 512 + first * 64;
#pragma GCC unroll 2
  for (int vector = 0; vector < VECTORS; ++vector) {
    const Floats scale = load_halves(halves + vector * 64);
    const Floats offset = load_halves(halves + vector * 64 + 32);
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      const int64_t here = place + row * tokens.groups;
      const Floats both = multiply(scale, all(tokens.scales[here]));
      const Floats sum = multiply_add(both, to_floats(products[vector][row]), sums[vector][row]);
      sums[vector][row] = multiply_add(offset, all(tokens.scaled_sums[here]), sum);
    }
  }
}

}  // namespace
}  // namespace firstlight

#if defined(__AVX512F__)
#include "linear_groups_avx512.h"
#else
#include "linear_groups_avx2.h"
#endif
