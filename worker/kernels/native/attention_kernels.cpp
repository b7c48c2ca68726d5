// Paged attention for one instruction set: see attention.h for the memory and the units of work.
//
// The story of a unit: its queries are normalised, rotated and rounded to bfloat16 once; then every
// part of its keys gives scores, weights and weighted values (a Partial), which is merged into what
// the parts before it gave. Decode and prefill differ in how many queries a unit has and in nothing
// else: each sum over dims or keys runs in one order, from zero, within registers.
#include "attention.h"
#include "attention_scores.h"
#include "level.h"

namespace firstlight {
namespace {

// Few queries wait for memory, many for arithmetic: only the former fetch ahead.
constexpr int kMostRowsThatFetch = 16;

// ---- parts -------------------------------------------------------------------------------------

struct Scratch {
  Bf16Code* queries;   // [rows][DIM]
  float* scores;       // [rows][kPart]
  Bf16Code* weights;   // [rows][kPart]
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
  constexpr int kCodesOfFloat = sizeof(float) / sizeof(Bf16Code);
  scratch.queries =
      reinterpret_cast<Bf16Code*>(take(whole_tiles(rows * dim / kCodesOfFloat)));
  scratch.scores = take(rows * kPart);
  scratch.weights = reinterpret_cast<Bf16Code*>(take(rows * kPart / kCodesOfFloat));
  scratch.part = partial_at(take(partial_floats(rows, dim)), rows);
  scratch.merged = partial_at(take(partial_floats(rows, dim)), rows);
  scratch.expanded = reinterpret_cast<uint16_t*>(take(kPart * dim / 2));
  return scratch;
}

void prepare_queries(const AttentionStep& step, const AttentionUnit& unit, Bf16Code* queries) {
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
      for (int j = 0; j < dim; j += 16) {
        write_bf16_codes(queries + j, multiply(load(head + j), factor));
      }
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
    const int slot = slot_at(step, position);
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
void fetch_first_keys(const AttentionStep& step, const AttentionUnit& unit, const Tiles& keys) {
  if (unit.tile.count * group_of(step) > kMostRowsThatFetch) return;
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

// Calls `give(part, PartTiles, PartTiles of what is next)` for the parts of a unit, the first of
// which is `here`; after the last comes `last`.
template <class Give>
inline void for_parts(const AttentionStep& step, const AttentionUnit& unit, PartTiles here,
                      const PartTiles& last, Give give) {
  for (int part = unit.first_part; part < unit.last_part; ++part) {
    const bool is_last = part + 1 == unit.last_part;
    const PartTiles next = is_last ? last : find_tiles(step, unit, part + 1);
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

void attend(const AttentionStep& step, const AttentionUnit& unit, const AttentionUnit& next,
            float* memory) {
  const int rows = unit.tile.count * group_of(step);
  const int dim = step.layout.dim;
  const Scratch scratch = scratch_at(memory, rows, dim);
  const PartTiles first = find_tiles(step, unit, unit.first_part);
  fetch_first_keys(step, unit, first.keys);
  if (unit.keeps) keep(step, unit.tile.sequence, unit.kv_head, unit.tile.first, 1);
  prepare_queries(step, unit, scratch.queries);
  begin_merge(scratch.merged, rows, dim);
  const PartTiles last = find_tiles(step, next, next.first_part);
  for_parts(step, unit, first, last,
            [&](int part, const PartTiles& here, const PartTiles& coming) {
              attend_part(step, unit, part, here, coming, scratch, scratch.part);
              merge_part(scratch.merged, scratch.part, rows, dim);
            });
  write_result(step, unit, scratch.merged);
}

void attend_apart(const AttentionStep& step, const AttentionUnit& unit, float* partials,
                  float* memory) {
  const int rows = unit.tile.count * group_of(step);
  const int dim = step.layout.dim;
  const Scratch scratch = scratch_at(memory, rows, dim);
  const PartTiles first = find_tiles(step, unit, unit.first_part);
  fetch_first_keys(step, unit, first.keys);
  prepare_queries(step, unit, scratch.queries);
  for_parts(step, unit, first, first,
            [&](int part, const PartTiles& here, const PartTiles& coming) {
              attend_part(step, unit, part, here, coming, scratch, partial_at(partials, rows));
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
