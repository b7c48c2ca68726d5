// What the operator `attend` (attention.cpp) and its kernels (attention_kernels.cpp) share.
//
// attention.cpp is compiled once, knows torch, checks, plans and spreads the work over threads.
// attention_kernels.cpp is compiled once per instruction set and knows numbers only.
// For the same reason nothing here may become a function that the linker merges between the two:
// data and `static` functions only.
#pragma once

#include <cstdint>

namespace firstlight {

// Keys go in tiles of 16 (one vector of scores), tiles in parts. A part gives every query its own
// maximum, sum and weighted values; parts are merged in order. Parts begin at multiples of
// kPart whoever asks, so that a token's bits depend on positions only.
constexpr int kTile = 16;
constexpr int kPart = 256;
constexpr int kTilesOfPart = kPart / kTile;

// The pool is [runs][kv_heads][blocks of a run]: so much of a sequence's keys and values lies
// together as its blocks follow each other.
//
// The memory of one kv head in one block. `dim` is head_dim filled up with zeros to a multiple of
// 16 (written DIM). Numbers are bfloat16, or bytes with a scale a token. Two neighbours of the sum
// lie side by side, as the dot product instruction of bfloat16 wants them:
//
//   keys    [block_size / 16] tiles of [DIM / 2][16 keys][2 dims]
//   values  [block_size / 16] tiles of [16 / 2][DIM dims][2 keys]
//   int8 only: float [block_size] scales of keys, float [block_size] scales of values
struct BlockLayout {
  int dim;
  int64_t tile_bytes;
  int64_t values_offset;
  int64_t key_scales_offset;
  int64_t value_scales_offset;
  int64_t bytes;
};

// One layer's share of one step. Shapes as in the operator's schema (operators.cpp).
struct AttentionStep {
  const float* qkv;
  uint8_t* pool;
  const int32_t* tables;
  const int32_t* rows;
  const int32_t* starts;
  const int32_t* ends;
  const float* rope;
  const float* query_norm;  // or null
  const float* key_norm;    // or null
  float* attended;

  int64_t run_stride;   // bytes from one run of the pool to the next
  int run_bits;         // 2^run_bits blocks are a run
  int block_bits;       // 2^block_bits positions are a block
  int64_t most_blocks;  // of a table
  int rotary_dim;
  float epsilon;
  float scale;
  float softcap;  // 0: none
  int window;     // 0: none
  int heads;
  int kv_heads;
  int head_dim;
  bool is_int8;
  BlockLayout layout;
};

// Consecutive tokens of one sequence that share their loads of keys and values.
struct QueryTile {
  int sequence;
  int first;     // token of the step
  int count;     // tokens
  int position;  // of the first token
};

// One tile's queries of one kv head over some parts of its keys.
struct AttentionUnit {
  QueryTile tile;
  int kv_head;
  int first_part;
  int last_part;  // not included
  bool keeps;     // its token's key and value first, which nobody else needs
};

// What keys gave the queries of one unit, row by row (row = token * group + head of the group).
// Scores are in powers of two: a key's weight is 2^(score - maximum).
struct Partial {
  float* maximum;  // [rows], filled up to a multiple of 16
  float* sum;      // [rows], filled up to a multiple of 16
  float* values;   // [rows][DIM]
};

static inline int64_t whole_tiles(int64_t count) { return (count + kTile - 1) / kTile * kTile; }

static inline int64_t partial_floats(int64_t rows, int64_t dim) {
  return 2 * whole_tiles(rows) + whole_tiles(rows * dim);
}

static inline Partial partial_at(float* memory, int64_t rows) {
  return {memory, memory + whole_tiles(rows), memory + 2 * whole_tiles(rows)};
}

// Floats that a thread lends to `attend` and `merge` for units of `rows` queries, at most: queries,
// scores, weights, two partials and the bfloat16 form of one part's tiles.
static inline int64_t scratch_floats(int64_t rows, int64_t dim) {
  return whole_tiles(rows * dim) + 2 * rows * kPart + 2 * partial_floats(rows, dim) +
         kPart * dim / 2;
}

struct AttentionKernels {
  // Normalises and rotates the keys of `count` tokens from `first` on, which fall into one tile of
  // one sequence, and keeps them and their values in the pool: one kv head's.
  void (*keep)(const AttentionStep&, int sequence, int kv_head, int first, int count);

  // All parts of a unit into the step's result. The thread's next unit is probably `next`.
  void (*attend)(const AttentionStep&, const AttentionUnit&, const AttentionUnit& next,
                 float* scratch);

  // Every part of a unit into a partial of its own; `partials` is the first.
  void (*attend_apart)(const AttentionStep&, const AttentionUnit&, float* partials, float* scratch);

  // The partials of all parts of a tile's kv head into the step's result.
  void (*merge)(const AttentionStep&, const AttentionUnit&, float* partials, float* scratch);
};

}  // namespace firstlight
