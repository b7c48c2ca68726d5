// Paged attention for one instruction set: see attention.h for the memory and the units of work.
//
// The story of a unit: its queries are normalised, rotated and rounded to bfloat16 once; then every
// part of its keys gives scores, weights and weighted values (a Partial), which is merged into what
// the parts before it gave. Decode and prefill differ in how many queries a unit has and in nothing
// else: each sum over dims or keys runs in one order, from zero, within registers.
#include <cmath>

#include "attention.h"
#include "level.h"
#include "simd.h"

namespace firstlight {
namespace {

// Sums that stay in registers: kRowsAtOnce queries by kVectorsAtOnce vectors of keys (or dims).
#if defined(__AVX512BF16__)
constexpr int kRowsAtOnce = 6;
constexpr int kVectorsAtOnce = 4;
#elif defined(__AVX512F__)
constexpr int kRowsAtOnce = 4;
constexpr int kVectorsAtOnce = 4;
#else
constexpr int kRowsAtOnce = 2;
constexpr int kVectorsAtOnce = 2;
#endif

// Few queries wait for memory, many for arithmetic: only the former fetch ahead.
constexpr int kMostRowsThatFetch = 16;

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLargestBf16 = 3.38953138925153547590e38f;
constexpr float kLowest = -1e30f;  // the maximum of no score at all
constexpr int kMostDim = 256;

int group_of(const AttentionStep& step) { return step.heads / step.kv_heads; }

// ---- heads -------------------------------------------------------------------------------------

// head[i] and head[i + half] are the two coordinates that turn by angle i.
void rotate(float* head, const float* cosines, int half) {
  const float* sines = cosines + half;
  int i = 0;
  for (; i + 16 <= half; i += 16) {
    const Floats x = load(head + i);
    const Floats y = load(head + i + half);
    const Floats cosine = load(cosines + i);
    const Floats sine = load(sines + i);
    store(head + i, subtract(multiply(x, cosine), multiply(y, sine)));
    store(head + i + half, multiply_add(y, cosine, multiply(x, sine)));
  }
  for (; i < half; ++i) {
    const float x = head[i];
    const float y = head[i + half];
    head[i] = x * cosines[i] - y * sines[i];
    head[i + half] = y * cosines[i] + x * sines[i];
  }
}

void normalise(float* head, const float* weight, int head_dim, int dim, float epsilon) {
  Floats squares = all(0.0f);
  for (int i = 0; i < dim; i += 16) {
    const Floats x = load(head + i);
    squares = multiply_add(x, x, squares);
  }
  const float factor = 1.0f / std::sqrt(total(squares) / float(head_dim) + epsilon);
  for (int i = 0; i < head_dim; ++i) head[i] = head[i] * factor * weight[i];
}

void load_head(float* head, const float* from, int head_dim, int dim) {
  memcpy(head, from, head_dim * sizeof(float));
  for (int i = head_dim; i < dim; ++i) head[i] = 0.0f;
}

// A query's or key's head of one token, ready for the dot product. Never inlined, so that there is
// one way in which its operations are fused.
__attribute__((noinline)) void prepare_head(const AttentionStep& step, const float* from,
                                            const float* norm, int position, float* head) {
  const int dim = step.layout.dim;
  load_head(head, from, step.head_dim, dim);
  if (norm != nullptr) normalise(head, norm, step.head_dim, dim, step.epsilon);
  rotate(head, step.rope + int64_t(position) * step.rotary_dim, step.rotary_dim / 2);
}

// ---- pool --------------------------------------------------------------------------------------

uint8_t* block_at(const AttentionStep& step, int sequence, int kv_head, int position) {
  const int32_t* table = step.tables + step.rows[sequence] * step.most_blocks;
  const int64_t block = table[position / step.block_size];
  return step.pool + block * step.block_stride + kv_head * step.layout.bytes;
}

// What is kept is finite, as the zeros are that a pool begins with: whoever wrote a value that a
// query does not see, 0 times it is 0.
void make_finite(float* head, int dim) {
  for (int i = 0; i < dim; i += 16) {
    const Floats x = nan_to_zero(load(head + i));
    store(head + i, minimum(maximum(x, all(-kLargestBf16)), all(kLargestBf16)));
  }
}

// Turns a head into whole numbers within -127..127; returns what they are multiples of.
float quantise(float* head, int dim) {
  Floats magnitude = all(0.0f);
  for (int i = 0; i < dim; i += 16) magnitude = maximum(magnitude, absolute(load(head + i)));
  const float scale = largest(magnitude) / 127.0f;
  // Numbers so small that their scale has no reciprocal are zeros.
  const float inverse = scale > 1e-37f ? 1.0f / scale : 0.0f;
  for (int i = 0; i < dim; i += 16) {
    store(head + i, multiply(load(head + i), all(inverse)));
  }
  return scale;
}

// `key` is the index within the tile. Code is uint16_t (bfloat16) or int8_t.
template <class Code>
void keep_key(Code* tile, const Code* head, int dim, int key) {
  for (int i = 0; i < dim; i += 2) {
    Code* pair = tile + i * kTile + 2 * key;
    pair[0] = head[i];
    pair[1] = head[i + 1];
  }
}

template <class Code>
void keep_value(Code* tile, const Code* head, int dim, int key) {
  Code* pairs = tile + key / 2 * 2 * dim + key % 2;
  for (int i = 0; i < dim; ++i) pairs[2 * i] = head[i];
}

void keep_bf16(const BlockLayout& layout, uint8_t* block, int slot, const float* key,
               const float* value) {
  uint16_t codes[kMostDim];
  const int64_t tile = slot / kTile * layout.tile_bytes;
  for (int i = 0; i < layout.dim; i += 16) store_bf16(codes + i, load(key + i));
  keep_key(reinterpret_cast<uint16_t*>(block + tile), codes, layout.dim, slot % kTile);
  for (int i = 0; i < layout.dim; i += 16) store_bf16(codes + i, load(value + i));
  keep_value(reinterpret_cast<uint16_t*>(block + layout.values_offset + tile), codes, layout.dim,
             slot % kTile);
}

void keep_int8(const BlockLayout& layout, uint8_t* block, int slot, float* key, float* value) {
  int8_t codes[kMostDim];
  const int64_t tile = slot / kTile * layout.tile_bytes;
  reinterpret_cast<float*>(block + layout.key_scales_offset)[slot] = quantise(key, layout.dim);
  for (int i = 0; i < layout.dim; i += 16) store_bytes(codes + i, load(key + i));
  keep_key(reinterpret_cast<int8_t*>(block + tile), codes, layout.dim, slot % kTile);
  reinterpret_cast<float*>(block + layout.value_scales_offset)[slot] = quantise(value, layout.dim);
  for (int i = 0; i < layout.dim; i += 16) store_bytes(codes + i, load(value + i));
  keep_value(reinterpret_cast<int8_t*>(block + layout.values_offset + tile), codes, layout.dim,
             slot % kTile);
}

void keep(const AttentionStep& step, int sequence, int first, int count) {
  const int64_t width = int64_t(step.heads + 2 * step.kv_heads) * step.head_dim;
  const int position = step.ends[sequence] - step.starts[sequence + 1] + first;
  float key[kMostDim];
  float value[kMostDim];
  for (int kv_head = 0; kv_head < step.kv_heads; ++kv_head) {
    uint8_t* block = block_at(step, sequence, kv_head, position);
    for (int i = 0; i < count; ++i) {
      const float* token = step.qkv + (first + i) * width;
      const float* from = token + int64_t(step.heads + kv_head) * step.head_dim;
      prepare_head(step, from, step.key_norm, position + i, key);
      load_head(value, from + int64_t(step.kv_heads) * step.head_dim, step.head_dim,
                step.layout.dim);
      make_finite(key, step.layout.dim);
      make_finite(value, step.layout.dim);
      const int slot = (position + i) % step.block_size;
      if (step.is_int8) {
        keep_int8(step.layout, block, slot, key, value);
      } else {
        keep_bf16(step.layout, block, slot, key, value);
      }
    }
  }
}

// ---- scores, weights, weighted values ----------------------------------------------------------

// One part's tiles of keys or of values: first to last - 1 of the part's.
struct Tiles {
  int first;
  int last;
  const uint8_t* at[kTilesOfPart];    // bfloat16, or bytes until they are expanded
  const float* scales[kTilesOfPart];  // int8 only: [16 keys]
};

// A number that templates can take from an argument.
template <int N>
struct Constant {
  static constexpr int value = N;
};

// Calls `block(row, Constant)` for runs of at most kRowsAtOnce rows, all about as long.
template <class Block>
inline void for_runs_of_rows(int rows, Block block) {
  for (int row = 0; row < rows;) {
    const int runs = (rows - row + kRowsAtOnce - 1) / kRowsAtOnce;
    const int count = (rows - row + runs - 1) / runs;
    switch (count) {
      case 1: block(row, Constant<1>()); break;
      case 2: block(row, Constant<2>()); break;
#if defined(__AVX512F__)
      case 3: block(row, Constant<3>()); break;
      case 4: block(row, Constant<4>()); break;
      case 5: block(row, Constant<5>()); break;
      case 6: block(row, Constant<6>()); break;
#endif
    }
    row += count;
  }
}

// Calls `block(first, Constant)` for runs of 4, 2 or 1 vectors.
template <class Block>
inline void for_runs_of_vectors(int first, int last, Block block) {
  if constexpr (kVectorsAtOnce >= 4) {
    for (; first + 4 <= last; first += 4) block(first, Constant<4>());
  }
  for (; first + 2 <= last; first += 2) block(first, Constant<2>());
  if (first < last) block(first, Constant<1>());
}

// How the numbers of tiles come: as bfloat16, as that while others are fetched, or as bytes while
// others are.
enum class Source { kBf16, kBf16Fetching, kBytesFetching };

// 16 pairs of a tile's numbers from number `index` on; those of the tile `ahead` are fetched.
template <Source SOURCE>
inline Pairs load_from(const uint8_t* tile, const uint8_t* ahead, int64_t index) {
  if constexpr (SOURCE == Source::kBytesFetching) {
    fetch(ahead + index);
    return load_bytes_as_pairs(tile + index);
  }
  if constexpr (SOURCE == Source::kBf16Fetching) fetch(ahead + index * sizeof(uint16_t));
  return load_pairs(tile + index * sizeof(uint16_t));
}

// Calls `block` with the source as a constant.
template <class Block>
inline void for_source(Source source, Block block) {
  switch (source) {
    case Source::kBf16:
      return block(Constant<int(Source::kBf16)>());
    case Source::kBf16Fetching:
      return block(Constant<int(Source::kBf16Fetching)>());
    case Source::kBytesFetching:
      return block(Constant<int(Source::kBytesFetching)>());
  }
}

// Scores of ROWS queries with VECTORS tiles from `tile` on.
template <int ROWS, int VECTORS, Source SOURCE>
inline void score(const uint16_t* queries, int dim, const Tiles& keys, int tile,
                  const uint8_t* const* ahead, float* scores) {
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = all(0.0f);
  }
  for (int i = 0; i < dim; i += 2) {
    Pairs key[VECTORS];
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) {
      key[vector] = load_from<SOURCE>(keys.at[tile + vector], ahead[tile + vector], i * kTile);
    }
#pragma GCC unroll 8
    for (int row = 0; row < ROWS; ++row) {
      const Pairs query = all_pairs(queries + row * dim + i);
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector) {
        sums[row][vector] = dot(sums[row][vector], key[vector], query);
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) {
      Floats sum = sums[row][vector];
      if (keys.scales[tile + vector] != nullptr) {
        sum = multiply(sum, load(keys.scales[tile + vector]));
      }
      store(scores + row * kPart + (tile + vector) * kTile, sum);
    }
  }
}

// Only the first rows fetch `ahead`: the others find the cache as they left it.
Source source_of_row(Source source, int row) {
  return source == Source::kBf16Fetching && row > 0 ? Source::kBf16 : source;
}

void score_all(const uint16_t* queries, int rows, int dim, const Tiles& keys, Source source,
               const uint8_t* const* ahead, float* scores) {
  for_runs_of_vectors(keys.first, keys.last, [&](int tile, auto vectors) {
    for_runs_of_rows(rows, [&](int row, auto count) {
      for_source(source_of_row(source, row), [&](auto from) {
        score<count.value, vectors.value, Source(from.value)>(
            queries + row * dim, dim, keys, tile, ahead, scores + row * kPart);
      });
    });
  });
}

// softcap * tanh(score / softcap), in powers of two.
void cap(float* scores, int count, float softcap) {
  for (int i = 0; i < count; i += 16) {
    const Floats twice = multiply(load(scores + i), all(2.0f * kLog2E / softcap));
    const Floats power = power_of_two(minimum(twice, all(60.0f)));
    // tanh(x) = 1 - 2 / (e^2x + 1)
    const Floats tanh = subtract(all(1.0f), divide(all(2.0f), add(power, all(1.0f))));
    store(scores + i, multiply(tanh, all(softcap * kLog2E)));
  }
}

// The keys of a part that one token sees, first to last - 1, and the tiles that hold them.
struct Seen {
  int first;
  int last;
  int first_tile;
  int last_tile;
};

// The first position that a token at `position` sees.
int first_seen(const AttentionStep& step, int position) {
  if (step.window == 0 || position < step.window) return 0;
  return position - step.window + 1;
}

Seen seen_of_part(const AttentionStep& step, int position, int part) {
  const int begin = part * kPart;
  int first = first_seen(step, position) - begin;
  int last = position + 1 - begin;
  if (first < 0) first = 0;
  if (last > kPart) last = kPart;
  if (first >= last) return {0, 0, 0, 0};
  return {first, last, first / kTile, (last + kTile - 1) / kTile};
}

void hide_all_but(float* scores, int first, int last) {
  const float infinity = __builtin_inff();
  store(scores, choose(between(first, last), load(scores), all(-infinity)));
}

// Hides what a query does not see of its first and last tile; returns the largest score it does.
float largest_score(float* scores, const Seen& seen) {
  if (seen.first == seen.last) return kLowest;
  if (seen.first % kTile != 0) {
    hide_all_but(scores + seen.first_tile * kTile, seen.first % kTile, kTile);
  }
  if (seen.last % kTile != 0) {
    hide_all_but(scores + (seen.last_tile - 1) * kTile, 0, seen.last % kTile);
  }
  Floats tops = load(scores + seen.first_tile * kTile);
  for (int tile = seen.first_tile + 1; tile < seen.last_tile; ++tile) {
    tops = maximum(tops, load(scores + tile * kTile));
  }
  return largest(tops);
}

void write_no_weights(uint16_t* weights, int first_tile, int last_tile) {
  for (int tile = first_tile; tile < last_tile; ++tile) {
    store_bf16(weights + tile * kTile, all(0.0f));
  }
}

// Weights 2^(score - top) of one query; returns their sum. A hidden key weighs exactly zero,
// whatever its score was. Scales are laid on the weights instead of on the values.
float weigh(const float* scores, const Seen& seen, float top, const Tiles& values,
            uint16_t* weights) {
  Floats sums = all(0.0f);
  for (int tile = seen.first_tile; tile < seen.last_tile; ++tile) {
    Floats weight = power_of_two(subtract(load(scores + tile * kTile), all(top)));
    sums = add(sums, weight);
    if (values.scales[tile] != nullptr) weight = multiply(weight, load(values.scales[tile]));
    store_bf16(weights + tile * kTile, weight);
  }
  if (seen.first == seen.last) {
    write_no_weights(weights, values.first, values.last);
  } else {
    write_no_weights(weights, values.first, seen.first_tile);
    write_no_weights(weights, seen.last_tile, values.last);
  }
  return total(sums);
}

// All queries of a unit, in two loops: no sum waits for its own maximum.
void weigh_all(const AttentionStep& step, const QueryTile& tile, int part, const Tiles& values,
               float* scores, const Partial& given, uint16_t* weights) {
  const int group = group_of(step);
  for (int token = 0; token < tile.count; ++token) {
    const Seen seen = seen_of_part(step, tile.position + token, part);
    for (int row = token * group; row < (token + 1) * group; ++row) {
      given.maximum[row] = largest_score(scores + row * kPart, seen);
    }
  }
  for (int token = 0; token < tile.count; ++token) {
    const Seen seen = seen_of_part(step, tile.position + token, part);
    for (int row = token * group; row < (token + 1) * group; ++row) {
      given.sum[row] = weigh(scores + row * kPart, seen, given.maximum[row], values,
                             weights + row * kPart);
    }
  }
}

// Weighted values of ROWS queries: VECTORS vectors of dims from `vector` on.
template <int ROWS, int VECTORS, Source SOURCE>
inline void mix(const uint16_t* weights, int dim, const Tiles& values, int first,
                const uint8_t* const* ahead, float* mixed) {
  Floats sums[ROWS][VECTORS];
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) sums[row][vector] = all(0.0f);
  }
  for (int tile = values.first; tile < values.last; ++tile) {
#pragma GCC unroll 2
    for (int key = 0; key < kTile; key += 2) {
      Pairs value[VECTORS];
#pragma GCC unroll 4
      for (int vector = 0; vector < VECTORS; ++vector) {
        const int64_t index = key * dim + (first + vector) * 2 * 16;
        value[vector] = load_from<SOURCE>(values.at[tile], ahead[tile], index);
      }
#pragma GCC unroll 8
      for (int row = 0; row < ROWS; ++row) {
        const Pairs weight = all_pairs(weights + row * kPart + tile * kTile + key);
#pragma GCC unroll 4
        for (int vector = 0; vector < VECTORS; ++vector) {
          sums[row][vector] = dot(sums[row][vector], value[vector], weight);
        }
      }
    }
  }
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) {
      store(mixed + row * dim + (first + vector) * 16, sums[row][vector]);
    }
  }
}

void mix_all(const uint16_t* weights, int rows, int dim, const Tiles& values, Source source,
             const uint8_t* const* ahead, float* mixed) {
  for_runs_of_vectors(0, dim / 16, [&](int vector, auto vectors) {
    for_runs_of_rows(rows, [&](int row, auto count) {
      for_source(source_of_row(source, row), [&](auto from) {
        mix<count.value, vectors.value, Source(from.value)>(
            weights + row * kPart, dim, values, vector, ahead, mixed + row * dim);
      });
    });
  });
}

// ---- parts -------------------------------------------------------------------------------------

struct Scratch {
  uint16_t* queries;   // [rows][DIM]
  float* scores;       // [rows][kPart]
  uint16_t* weights;   // [rows][kPart]
  Partial part;        // what a part gives
  Partial merged;      // what the parts up to now have given
  uint16_t* expanded;  // one part's tiles
};

Scratch scratch_at(float* memory, int64_t rows, int64_t dim) {
  Scratch scratch;
  const auto take = [&memory](int64_t count) {
    float* taken = memory;
    memory += count;
    return taken;
  };
  scratch.queries = reinterpret_cast<uint16_t*>(take(whole_tiles(rows * dim / 2)));
  scratch.scores = take(rows * kPart);
  scratch.weights = reinterpret_cast<uint16_t*>(take(rows * kPart / 2));
  scratch.part = partial_at(take(partial_floats(rows, dim)), rows);
  scratch.merged = partial_at(take(partial_floats(rows, dim)), rows);
  scratch.expanded = reinterpret_cast<uint16_t*>(take(kPart * dim / 2));
  return scratch;
}

void prepare_queries(const AttentionStep& step, const AttentionUnit& unit, uint16_t* queries) {
  const int group = group_of(step);
  const int dim = step.layout.dim;
  const int64_t width = int64_t(step.heads + 2 * step.kv_heads) * step.head_dim;
  // Scores are wanted in powers of two; a cap is laid on natural ones.
  const Floats factor = all(step.softcap > 0.0f ? step.scale : step.scale * kLog2E);
  float head[kMostDim];
  for (int token = 0; token < unit.tile.count; ++token) {
    const float* from = step.qkv + (unit.tile.first + token) * width +
                        int64_t(unit.kv_head) * group * step.head_dim;
    for (int i = 0; i < group; ++i, queries += dim) {
      prepare_head(step, from + i * step.head_dim, step.query_norm, unit.tile.position + token,
                   head);
      for (int j = 0; j < dim; j += 16) store_bf16(queries + j, multiply(load(head + j), factor));
    }
  }
}

// The keys and values of one part that a unit's queries see.
struct PartTiles {
  Tiles keys;
  Tiles values;
};

PartTiles find_tiles(const AttentionStep& step, const AttentionUnit& unit, int part) {
  const BlockLayout& layout = step.layout;
  const int begin = part * kPart;
  const int last_position = unit.tile.position + unit.tile.count - 1;
  const int first_position = first_seen(step, unit.tile.position);
  const int first = first_position <= begin ? 0 : (first_position - begin) / kTile;
  const int last =
      last_position >= begin + kPart ? kTilesOfPart : (last_position - begin) / kTile + 1;
  PartTiles found;
  found.keys.first = found.values.first = first;
  found.keys.last = found.values.last = last;
  for (int tile = 0; tile < kTilesOfPart; ++tile) {
    // Tiles that nobody sees are given as their neighbours: they may be fetched, never read.
    const int seen = tile < first ? first : tile >= last ? last - 1 : tile;
    const int position = begin + seen * kTile;
    const uint8_t* block = block_at(step, unit.tile.sequence, unit.kv_head, position);
    const int slot = position % step.block_size;
    found.keys.at[tile] = block + slot / kTile * layout.tile_bytes;
    found.values.at[tile] = found.keys.at[tile] + layout.values_offset;
    found.keys.scales[tile] = nullptr;
    found.values.scales[tile] = nullptr;
    if (step.is_int8) {
      const auto* key_scales = reinterpret_cast<const float*>(block + layout.key_scales_offset);
      const auto* value_scales = reinterpret_cast<const float*>(block + layout.value_scales_offset);
      found.keys.scales[tile] = key_scales + slot;
      found.values.scales[tile] = value_scales + slot;
    }
  }
  return found;
}

// Bytes become bfloat16, which holds them exactly; their scales are laid on scores and weights.
void expand(Tiles* tiles, int dim, uint16_t* to) {
  for (int tile = tiles->first; tile < tiles->last; ++tile, to += kTile * dim) {
    for (int i = 0; i < kTile * dim; i += 32) {
      const uint8_t* codes = tiles->at[tile] + i;
      store_bf16(to + i, load_bytes(codes), load_bytes(codes + 16));
    }
    tiles->at[tile] = reinterpret_cast<const uint8_t*>(to);
  }
}

// Bytes that are loaded more than once are expanded beforehand.
Source source_for(const AttentionStep& step, int rows) {
  if (step.is_int8) return rows <= kRowsAtOnce ? Source::kBytesFetching : Source::kBf16;
  return rows <= kMostRowsThatFetch ? Source::kBf16Fetching : Source::kBf16;
}

// The keys that come first are on their way while the queries are prepared.
void fetch_first_keys(const AttentionStep& step, const AttentionUnit& unit) {
  if (unit.tile.count * group_of(step) > kMostRowsThatFetch) return;
  const Tiles keys = find_tiles(step, unit, unit.first_part).keys;
  for (int tile = keys.first; tile < keys.last && tile < keys.first + kVectorsAtOnce; ++tile) {
    for (int64_t i = 0; i < step.layout.tile_bytes; i += 64) fetch(keys.at[tile] + i);
  }
}

// What one part of the keys gives a unit's queries. Where they wait for memory, values are fetched
// while the keys before them are multiplied, and the next part's keys while the values are.
void attend_part(const AttentionStep& step, const AttentionUnit& unit, int part,
                 const PartTiles& here, const PartTiles& next, const Scratch& scratch,
                 const Partial& given) {
  const int dim = step.layout.dim;
  const int rows = unit.tile.count * group_of(step);
  const Source source = source_for(step, rows);
  const bool expands = step.is_int8 && source == Source::kBf16;

  Tiles keys = here.keys;
  if (expands) expand(&keys, dim, scratch.expanded);
  score_all(scratch.queries, rows, dim, keys, source, here.values.at, scratch.scores);

  if (step.softcap > 0.0f) cap(scratch.scores, rows * kPart, step.softcap);
  weigh_all(step, unit.tile, part, here.values, scratch.scores, given, scratch.weights);

  Tiles values = here.values;
  if (expands) expand(&values, dim, scratch.expanded);
  mix_all(scratch.weights, rows, dim, values, source, next.keys.at, given.values);
}

// Calls `give(part, PartTiles, PartTiles of the next)` for the parts of a unit.
template <class Give>
inline void for_parts(const AttentionStep& step, const AttentionUnit& unit, Give give) {
  PartTiles here = find_tiles(step, unit, unit.first_part);
  for (int part = unit.first_part; part < unit.last_part; ++part) {
    const PartTiles next = part + 1 < unit.last_part ? find_tiles(step, unit, part + 1) : here;
    give(part, here, next);
    here = next;
  }
}

void begin_merge(const Partial& merged, int rows, int dim) {
  fill(merged.maximum, kLowest, rows);
  fill(merged.sum, 0.0f, rows);
  fill(merged.values, 0.0f, int64_t(rows) * dim);
}

// One way of merging for everybody: a part in which a query sees nothing changes nothing.
void merge_part(const Partial& merged, const Partial& part, int rows, int dim) {
  for (int row = 0; row < rows; row += 16) {
    const Floats before = load(merged.maximum + row);
    const Floats here = load(part.maximum + row);
    const Floats top = maximum(before, here);
    const Floats keep = power_of_two(subtract(before, top));
    const Floats take = power_of_two(subtract(here, top));
    store(merged.maximum + row, top);
    store(merged.sum + row, multiply_add(load(part.sum + row), take,
                                         multiply(load(merged.sum + row), keep)));
    float keeps[16];
    float takes[16];
    store(keeps, keep);
    store(takes, take);
    for (int i = 0; i < 16 && row + i < rows; ++i) {
      float* values = merged.values + (row + i) * dim;
      const float* more = part.values + (row + i) * dim;
      for (int j = 0; j < dim; j += 16) {
        store(values + j, multiply_add(load(more + j), all(takes[i]),
                                       multiply(load(values + j), all(keeps[i]))));
      }
    }
  }
}

void write_result(const AttentionStep& step, const AttentionUnit& unit, const Partial& merged) {
  const int group = group_of(step);
  const int dim = step.layout.dim;
  for (int row = 0; row < unit.tile.count * group; ++row) {
    const int64_t head = int64_t(unit.tile.first + row / group) * step.heads +
                         unit.kv_head * group + row % group;
    const Floats factor = all(1.0f / merged.sum[row]);
    float result[kMostDim];
    for (int i = 0; i < dim; i += 16) {
      store(result + i, multiply(load(merged.values + row * dim + i), factor));
    }
    memcpy(step.attended + head * step.head_dim, result, step.head_dim * sizeof(float));
  }
}

// ---- units -------------------------------------------------------------------------------------

void attend(const AttentionStep& step, const AttentionUnit& unit, float* memory) {
  const int rows = unit.tile.count * group_of(step);
  const int dim = step.layout.dim;
  const Scratch scratch = scratch_at(memory, rows, dim);
  fetch_first_keys(step, unit);
  prepare_queries(step, unit, scratch.queries);
  begin_merge(scratch.merged, rows, dim);
  for_parts(step, unit, [&](int part, const PartTiles& here, const PartTiles& next) {
    attend_part(step, unit, part, here, next, scratch, scratch.part);
    merge_part(scratch.merged, scratch.part, rows, dim);
  });
  write_result(step, unit, scratch.merged);
}

void attend_apart(const AttentionStep& step, const AttentionUnit& unit, float* partials,
                  float* memory) {
  const int rows = unit.tile.count * group_of(step);
  const int dim = step.layout.dim;
  const Scratch scratch = scratch_at(memory, rows, dim);
  fetch_first_keys(step, unit);
  prepare_queries(step, unit, scratch.queries);
  for_parts(step, unit, [&](int part, const PartTiles& here, const PartTiles& next) {
    attend_part(step, unit, part, here, next, scratch, partial_at(partials, rows));
    partials += partial_floats(rows, dim);
  });
}

void merge(const AttentionStep& step, const AttentionUnit& unit, float* partials, float* memory) {
  const int rows = unit.tile.count * group_of(step);
  const int dim = step.layout.dim;
  const Partial merged = scratch_at(memory, rows, dim).merged;
  begin_merge(merged, rows, dim);
  for (int part = unit.first_part; part < unit.last_part; ++part) {
    merge_part(merged, partial_at(partials, rows), rows, dim);
    partials += partial_floats(rows, dim);
  }
  write_result(step, unit, merged);
}

}  // namespace

extern const AttentionKernels FIRSTLIGHT_TABLE(attention, FIRSTLIGHT_LEVEL);
const AttentionKernels FIRSTLIGHT_TABLE(attention, FIRSTLIGHT_LEVEL) = {keep, attend, attend_apart,
                                                                        merge};

}  // namespace firstlight
