// Divides a step's attention into units of about equal work.
#pragma once

#include <algorithm>
#include <vector>

#include "attention.h"

namespace firstlight {
namespace {

// Tokens of a tile times heads of a group: enough queries to a load of keys, few enough for their
// scores to stay in the cache.
constexpr int kMostRows = 48;

// Work in parts times rows, below which it is done at once rather than told to other threads. Few
// rows wait for memory, not for arithmetic: they count as several.
constexpr int kFewestRowsCounted = 8;
constexpr int64_t kSmallWork = 4 * kFewestRowsCounted;
constexpr int kUnitsPerThread = 4;

// A unit, and where it lies among the units of the same tile and kv head.
struct PlannedUnit {
  AttentionUnit unit;
  int split = -1;  // which of Plan::splits it belongs to, if any
};

// One tile's kv head, divided among several units. The last of them to end merges.
struct Split {
  AttentionUnit whole;
  int64_t partials;  // offset in floats
  int units;
};

struct Plan {
  std::vector<PlannedUnit> units;
  std::vector<Split> splits;
  std::vector<int> kept_before;  // sequences whose keys and values several units need
  int64_t partial_floats = 0;
  int64_t work = 0;
};

int64_t work_of(const AttentionUnit& unit, int group) {
  const int64_t rows = int64_t(unit.tile.count) * group;
  return (unit.last_part - unit.first_part) * std::max<int64_t>(rows, kFewestRowsCounted);
}

// Tiles of a sequence's new tokens, the last and longest first.
void add_tiles(const AttentionStep& step, int sequence, std::vector<AttentionUnit>& units) {
  const int group = step.heads / step.kv_heads;
  const int most_tokens = std::max(1, kMostRows / group);
  const int start = step.starts[sequence];
  const int count = step.starts[sequence + 1] - start;
  const int position = step.ends[sequence] - count;
  for (int offset = (count - 1) / most_tokens * most_tokens; offset >= 0; offset -= most_tokens) {
    const int tokens = std::min(most_tokens, count - offset);
    const int first_position = position + offset;
    const int first_seen = step.window == 0 ? 0 : std::max(0, first_position - step.window + 1);
    const QueryTile tile = {sequence, start + offset, tokens, first_position};
    const int last_part = (first_position + tokens - 1) / kPart + 1;
    units.push_back({tile, 0, first_seen / kPart, last_part, false});
  }
}

// How many units over its parts a unit is divided into, so that none is longer than `most_work`.
int64_t pieces_of(const AttentionStep& step, const AttentionUnit& whole, int64_t most_work) {
  const int64_t work = work_of(whole, step.heads / step.kv_heads);
  return std::min<int64_t>(whole.last_part - whole.first_part, (work + most_work - 1) / most_work);
}

void add_units(const AttentionStep& step, const AttentionUnit& whole, int64_t pieces, Plan& plan) {
  const int group = step.heads / step.kv_heads;
  const int parts = whole.last_part - whole.first_part;
  if (pieces <= 1) {
    plan.units.push_back({whole, -1});
    return;
  }
  for (int64_t piece = 0; piece < pieces; ++piece) {
    AttentionUnit unit = whole;
    unit.first_part = whole.first_part + static_cast<int>(piece * parts / pieces);
    unit.last_part = whole.first_part + static_cast<int>((piece + 1) * parts / pieces);
    plan.units.push_back({unit, static_cast<int>(plan.splits.size())});
  }
  plan.splits.push_back({whole, plan.partial_floats, static_cast<int>(pieces)});
  plan.partial_floats +=
      parts * partial_floats(int64_t(whole.tile.count) * group, step.layout.dim);
}

// Sequences with many tokens first: their units are the longest, and short ones fill the end.
Plan make_plan(const AttentionStep& step, int sequences, int threads) {
  const int group = step.heads / step.kv_heads;
  std::vector<AttentionUnit> tiles;
  for (const bool many : {true, false}) {
    for (int sequence = 0; sequence < sequences; ++sequence) {
      const int count = step.starts[sequence + 1] - step.starts[sequence];
      if (count > 0 && (count > 1) == many) add_tiles(step, sequence, tiles);
    }
  }
  Plan plan;
  for (const AttentionUnit& tile : tiles) plan.work += work_of(tile, group) * step.kv_heads;
  const int64_t units = threads == 1 ? 1 : int64_t(threads) * kUnitsPerThread;
  const int64_t most_work = std::max<int64_t>(plan.work / units, kFewestRowsCounted);
  for (AttentionUnit tile : tiles) {
    const int64_t pieces = pieces_of(step, tile, most_work);
    const int sequence = tile.tile.sequence;
    tile.keeps = pieces <= 1 && step.starts[sequence + 1] - step.starts[sequence] == 1;
    const bool is_new = plan.kept_before.empty() || plan.kept_before.back() != sequence;
    if (!tile.keeps && is_new) plan.kept_before.push_back(sequence);
    for (tile.kv_head = 0; tile.kv_head < step.kv_heads; ++tile.kv_head) {
      add_units(step, tile, pieces, plan);
    }
  }
  return plan;
}

}  // namespace
}  // namespace firstlight
