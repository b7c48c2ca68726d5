// What a part's keys and values give queries: scores, weights, and values mixed by these.
#pragma once

#include "attention_heads.h"

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
constexpr int kRowsAtOnce = 6;
constexpr int kVectorsAtOnce = 1;
#endif

constexpr float kLog2E = 1.44269504088896340736f;
constexpr float kLowest = -1e30f;  // the maximum of no score at all

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
      case 3: block(row, Constant<3>()); break;
      case 4: block(row, Constant<4>()); break;
      case 5: block(row, Constant<5>()); break;
      case 6: block(row, Constant<6>()); break;
    }
    row += count;
  }
}

// Calls `block(first, Constant)` for runs of 4, 2 or 1 vectors, kVectorsAtOnce at most.
template <class Block>
inline void for_runs_of_vectors(int first, int last, Block block) {
  if constexpr (kVectorsAtOnce >= 4) {
    for (; first + 4 <= last; first += 4) block(first, Constant<4>());
  }
  if constexpr (kVectorsAtOnce >= 2) {
    for (; first + 2 <= last; first += 2) block(first, Constant<2>());
  }
  for (; first < last; ++first) block(first, Constant<1>());
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
inline void score(const Bf16Code* queries, int dim, const Tiles& keys, int tile,
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
    add_pairs<ROWS, VECTORS>(key, queries + i, dim, sums);
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

void score_all(const Bf16Code* queries, int rows, int dim, const Tiles& keys, Source source,
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

void write_no_weights(Bf16Code* weights, int first_tile, int last_tile) {
  for (int tile = first_tile; tile < last_tile; ++tile) {
    write_bf16_codes(weights + tile * kTile, all(0.0f));
  }
}

// Weights 2^(score - top) of one query; returns their sum. A hidden key weighs exactly zero,
// whatever its score was. Scales are laid on the weights instead of on the values.
float weigh(const float* scores, const Seen& seen, float top, const Tiles& values,
            Bf16Code* weights) {
  Floats sums = all(0.0f);
  for (int tile = seen.first_tile; tile < seen.last_tile; ++tile) {
    Floats weight = power_of_two(subtract(load(scores + tile * kTile), all(top)));
    sums = add(sums, weight);
    if (values.scales[tile] != nullptr) weight = multiply(weight, load(values.scales[tile]));
    write_bf16_codes(weights + tile * kTile, weight);
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
               float* scores, const Partial& given, Bf16Code* weights) {
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
inline void mix(const Bf16Code* weights, int dim, const Tiles& values, int first,
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
      add_pairs<ROWS, VECTORS>(value, weights + tile * kTile + key, kPart, sums);
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

void mix_all(const Bf16Code* weights, int rows, int dim, const Tiles& values, Source source,
             const uint8_t* const* ahead, float* mixed) {
#if defined(__AVX512F__)
  for_runs_of_vectors(0, dim / 16, [&](int vector, auto vectors) {
    for_runs_of_rows(rows, [&](int row, auto count) {
#else
  // One vector of all values is too spread for the first cache: rather some rows' weights stay there.
  for_runs_of_rows(rows, [&](int row, auto count) {
    for_runs_of_vectors(0, dim / 16, [&](int vector, auto vectors) {
#endif
      for_source(source_of_row(source, row), [&](auto from) {
        mix<count.value, vectors.value, Source(from.value)>(
            weights + row * kPart, dim, values, vector, ahead, mixed + row * dim);
      });
    });
  });
}

}  // namespace
}  // namespace firstlight
