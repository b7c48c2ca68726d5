// How large tiles are, and what they fetch for those after them.
#pragma once

#include "linear.h"
#include "simd.h"

namespace firstlight {
namespace {

#if defined(__AVX512F__)
// Tokens of a tile, so that its sums stay in 32 registers beside weights and a token: 24 sums of
// floats, or 12 of these and 12 of whole numbers.
template <Kind KIND>
constexpr int kMostRows = KIND == Kind::kBf16 ? 12 : 6;
constexpr int kMostRowsOfWholeBlocks = 12;
// Tokens whose codes stay in the second-level cache while blocks of weights pass by.
constexpr int64_t kRowsAtOnce = 96;
#else
// Tokens of a tile, so that its sums stay in 16 registers beside weights and a token: twelve sums of
// floats, or eight of whole numbers. More than two tokens are multiplied with one vector of a block
// after the other.
template <Kind KIND>
constexpr int kMostRows = KIND == Kind::kBf16 ? 6 : 4;
constexpr int kMostRowsOfWholeBlocks = 2;
constexpr int64_t kRowsAtOnce = 48;
#endif

// Of a tile that shares its block with other tiles: 13 tokens go as 7 and 6.
template <Kind KIND>
constexpr int kFewestRowsBesideOthers = (kMostRows<KIND> + 1) / 2;

constexpr int64_t kLine = 64;  // bytes that memory is read by

// The share of the next block of weights that is asked for while this one is passed through once, so
// that memory and arithmetic do not wait for each other. Without a block it has no lines.
struct Ahead {
  const uint8_t* from = nullptr;
  int64_t lines_per_group = 0;

  void fetch(int64_t group) const {
    if (from == nullptr) return;
    const uint8_t* line = from + group * lines_per_group * kLine;
    for (int64_t i = 0; i < lines_per_group; ++i) firstlight::fetch(line + i * kLine);
  }

  // What the next pass asks for.
  void advance(int64_t groups) {
    if (from != nullptr) from += groups * lines_per_group * kLine;
  }
};

}  // namespace
}  // namespace firstlight
