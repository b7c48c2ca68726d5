// The operator `attend`: checks what it is given, and lets threads take the units of its plan one
// after another.
#include "attention.h"

#include <ATen/ATen.h>
#include <ATen/Parallel.h>

#include <algorithm>
#include <atomic>
#include <bit>
#include <vector>

#include "attention_plan.h"
#include "operators.h"
#include "threads.h"

namespace firstlight {
namespace {

constexpr int kMostHeadDim = 256;
constexpr int kFewTokens = 8;

BlockLayout lay_out_block(int head_dim, int block_size, bool is_int8) {
  const int number_bytes = is_int8 ? 1 : 2;
  const int64_t scales_bytes = is_int8 ? block_size * sizeof(float) : 0;
  BlockLayout layout;
  layout.dim = static_cast<int>(whole_tiles(head_dim));
  layout.tile_bytes = int64_t(kTile) * layout.dim * number_bytes;
  layout.values_offset = block_size / kTile * layout.tile_bytes;
  layout.key_scales_offset = 2 * layout.values_offset;
  layout.value_scales_offset = layout.key_scales_offset + scales_bytes;
  layout.bytes = layout.value_scales_offset + scales_bytes;
  return layout;
}

void check_heads(int64_t head_dim, int64_t block_size) {
  TORCH_CHECK(head_dim > 0 && head_dim % 8 == 0 && head_dim <= kMostHeadDim,
              "head_dim must be a multiple of 8 up to ", kMostHeadDim, ", not ", head_dim);
  TORCH_CHECK(block_size == 16 || block_size == 32 || block_size == 64,
              "block_size must be 16, 32 or 64, not ", block_size);
}

void check_tensor(const at::Tensor& tensor, const char* name, at::ScalarType type, int64_t dims) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.is_contiguous() && tensor.scalar_type() == type &&
                  tensor.dim() == dims,
              name, " must be a contiguous CPU tensor of ", type, " with ", dims, " dimensions");
}

const float* checked_norm(const std::optional<at::Tensor>& norm, const char* name,
                          int64_t head_dim) {
  if (!norm.has_value()) return nullptr;
  check_tensor(*norm, name, at::kFloat, 1);
  TORCH_CHECK(norm->size(0) == head_dim, name, " must have head_dim numbers");
  return norm->const_data_ptr<float>();
}

// Offsets ascend over exactly the step's tokens; every position lies within the rotations and
// within a table whose blocks are in the pool.
void check_sequences(const AttentionStep& step, int64_t sequences, int64_t tokens, int64_t lanes,
                     int64_t blocks, int64_t positions) {
  TORCH_CHECK(step.starts[0] == 0 && step.starts[sequences] == tokens,
              "starts must run from 0 to the number of tokens");
  const int64_t block_size = int64_t(1) << step.block_bits;
  const int64_t most_positions = std::min(positions, step.most_blocks * block_size);
  for (int64_t sequence = 0; sequence < sequences; ++sequence) {
    const int64_t count = int64_t(step.starts[sequence + 1]) - step.starts[sequence];
    const int64_t end = step.ends[sequence];
    const int64_t lane = step.rows[sequence];
    TORCH_CHECK(count >= 0, "starts must ascend");
    TORCH_CHECK(end >= count && end <= most_positions, "sequence ", sequence, " ends at ", end,
                ", its tokens are ", count, " and there is room for ", most_positions);
    TORCH_CHECK(lane >= 0 && lane < lanes, "sequence ", sequence, " has no table ", lane);
    const int32_t* table = step.tables + lane * step.most_blocks;
    const int64_t used = (end + block_size - 1) / block_size;
    for (int64_t i = 0; i < used; ++i) {
      TORCH_CHECK(table[i] >= 0 && table[i] < blocks, "sequence ", sequence, " has block ",
                  table[i], " of ", blocks);
    }
  }
}

// Memory that a thread keeps from call to call.
float* lent_floats(std::vector<float>& memory, int64_t count) {
  // Vectors begin at cache lines.
  constexpr int64_t line = 64;
  const size_t needed = count + line / sizeof(float);
  if (memory.size() < needed) memory.resize(needed);
  const auto address = reinterpret_cast<uintptr_t>(memory.data());
  return reinterpret_cast<float*>((address + line - 1) / line * line);
}

// Calls work(piece) for all pieces, on several threads unless there is little to do.
template <class Work>
void for_pieces(bool is_little, int64_t pieces, const Work& work) {
  if (!is_little) {
    in_parallel(pieces, work);
    return;
  }
  for (int64_t piece = 0; piece < pieces; ++piece) work(piece);
}

// The tokens of some sequences, grouped by the tiles of 16 positions that they fall into: nobody
// else writes to a tile meanwhile.
void keep_all(const AttentionKernels& kernels, const AttentionStep& step,
              const std::vector<int>& sequences) {
  struct Piece {
    int sequence, first, count;
  };
  std::vector<Piece> pieces;
  int64_t tokens = 0;
  for (const int sequence : sequences) {
    const int end = step.starts[sequence + 1];
    tokens += end - step.starts[sequence];
    for (int token = step.starts[sequence]; token < end;) {
      const int position = step.ends[sequence] - (end - token);
      const int count = std::min(kTile - position % kTile, end - token);
      pieces.push_back({sequence, token, count});
      token += count;
    }
  }
  for_pieces(tokens <= kFewTokens, static_cast<int64_t>(pieces.size()), [&](int64_t i) {
    for (int kv_head = 0; kv_head < step.kv_heads; ++kv_head) {
      kernels.keep(step, pieces[i].sequence, kv_head, pieces[i].first, pieces[i].count);
    }
  });
}

void attend_all(const AttentionKernels& kernels, const AttentionStep& step, int sequences) {
  const Plan plan = make_plan(step, sequences, at::get_num_threads());
  keep_all(kernels, step, plan.kept_before);
  const int group = step.heads / step.kv_heads;
  const int64_t dim = step.layout.dim;
  std::vector<std::atomic<int>> left(plan.splits.size());
  for (size_t i = 0; i < left.size(); ++i) left[i] = plan.splits[i].units;
  thread_local std::vector<float> partials_memory;
  float* partials = lent_floats(partials_memory, plan.partial_floats);

  const auto attend_unit = [&](int64_t i, int64_t next) {
    static thread_local std::vector<float> scratch_memory;
    const AttentionUnit& unit = plan.units[i].unit;
    const int64_t rows = int64_t(unit.tile.count) * group;
    float* scratch = lent_floats(scratch_memory, scratch_floats(rows, dim));
    if (plan.units[i].split < 0) {
      kernels.attend(step, unit, plan.units[next].unit, scratch);
      return;
    }
    const Split& split = plan.splits[plan.units[i].split];
    const int64_t before = unit.first_part - split.whole.first_part;
    kernels.attend_apart(step, unit,
                         partials + split.partials + before * partial_floats(rows, dim), scratch);
    if (left[plan.units[i].split].fetch_sub(1, std::memory_order_acq_rel) == 1) {
      kernels.merge(step, split.whole, partials + split.partials, scratch);
    }
  };
  // Where there are many, the heads of a tile go together: their keys and values follow each other.
  const int64_t units = static_cast<int64_t>(plan.units.size());
  const int64_t threads = at::get_num_threads();
  const int64_t few = units >= threads * kUnitsPerThread * step.kv_heads ? step.kv_heads : 1;
  for_pieces(plan.work <= kSmallWork, whole(units, few), [&](int64_t piece) {
    const int64_t first = piece * few, last = std::min(units, first + few);
    // While threads keep pace, a thread takes every `threads`th piece.
    const int64_t next_piece = std::min(first + threads * few, units - 1);
    for (int64_t i = first; i < last; ++i) attend_unit(i, i + 1 < last ? i + 1 : next_piece);
  });
}

}  // namespace

int64_t kv_block_bytes(int64_t block_size, int64_t head_dim, bool is_int8) {
  check_heads(head_dim, block_size);
  return lay_out_block(static_cast<int>(head_dim), static_cast<int>(block_size), is_int8).bytes;
}

at::Tensor attend(const at::Tensor& qkv, at::Tensor pool, const at::Tensor& tables,
                  const at::Tensor& rows, const at::Tensor& starts, const at::Tensor& ends,
                  const at::Tensor& rope, const std::optional<at::Tensor>& query_norm,
                  const std::optional<at::Tensor>& key_norm, double epsilon, double scale,
                  double softcap, int64_t window, int64_t heads, int64_t kv_heads,
                  int64_t head_dim, int64_t block_size, bool is_int8) {
  check_heads(head_dim, block_size);
  TORCH_CHECK(kv_heads > 0 && heads > 0 && heads % kv_heads == 0,
              "heads must be a multiple of kv_heads, not ", heads, " of ", kv_heads);
  TORCH_CHECK(window >= 0 && softcap >= 0.0, "window and softcap are 0 or more");
  check_tensor(qkv, "qkv", at::kFloat, 2);
  check_tensor(tables, "tables", at::kInt, 2);
  check_tensor(rows, "rows", at::kInt, 1);
  check_tensor(starts, "starts", at::kInt, 1);
  check_tensor(ends, "ends", at::kInt, 1);
  check_tensor(rope, "rope", at::kFloat, 2);
  const int64_t sequences = rows.size(0);
  const int64_t tokens = qkv.size(0);
  TORCH_CHECK(qkv.size(1) == (heads + 2 * kv_heads) * head_dim, "qkv has ", qkv.size(1),
              " columns for ", heads, " heads and 2 * ", kv_heads, " kv heads of ", head_dim);
  TORCH_CHECK(starts.size(0) == sequences + 1 && ends.size(0) == sequences,
              "rows, starts and ends must speak of the same sequences");
  TORCH_CHECK(rope.size(1) % 2 == 0 && rope.size(1) <= head_dim,
              "rope must have an even number of columns, at most head_dim");

  AttentionStep step;
  step.layout = lay_out_block(static_cast<int>(head_dim), static_cast<int>(block_size), is_int8);
  // Runs may lie apart, so that a layer can be a slice of a pool of all layers.
  TORCH_CHECK(pool.device().is_cpu() && pool.scalar_type() == at::kByte && pool.dim() == 4 &&
                  pool.size(1) == kv_heads && pool.size(3) == step.layout.bytes &&
                  pool.stride(3) == 1 && pool.stride(2) == pool.size(3) &&
                  pool.stride(1) == pool.size(2) * pool.size(3) && pool.stride(0) >= 0,
              "pool must be a CPU tensor of bytes [runs, ", kv_heads, ", blocks, ",
              step.layout.bytes, "], contiguous within runs");
  TORCH_CHECK(std::has_single_bit(static_cast<uint64_t>(pool.size(2))),
              "blocks of a run must be a power of two");
  step.qkv = qkv.const_data_ptr<float>();
  step.pool = pool.mutable_data_ptr<uint8_t>();
  step.tables = tables.const_data_ptr<int32_t>();
  step.rows = rows.const_data_ptr<int32_t>();
  step.starts = starts.const_data_ptr<int32_t>();
  step.ends = ends.const_data_ptr<int32_t>();
  step.rope = rope.const_data_ptr<float>();
  step.query_norm = checked_norm(query_norm, "query_norm", head_dim);
  step.key_norm = checked_norm(key_norm, "key_norm", head_dim);
  step.run_stride = pool.stride(0);
  step.run_bits = std::countr_zero(static_cast<uint64_t>(pool.size(2)));
  step.block_bits = std::countr_zero(static_cast<uint64_t>(block_size));
  step.most_blocks = tables.size(1);
  step.rotary_dim = static_cast<int>(rope.size(1));
  step.epsilon = static_cast<float>(epsilon);
  step.scale = static_cast<float>(scale);
  step.softcap = static_cast<float>(softcap);
  step.window = static_cast<int>(std::min<int64_t>(window, INT32_MAX));
  step.heads = static_cast<int>(heads);
  step.kv_heads = static_cast<int>(kv_heads);
  step.head_dim = static_cast<int>(head_dim);
  step.is_int8 = is_int8;
  const int64_t blocks = pool.size(0) * pool.size(2);
  check_sequences(step, sequences, tokens, tables.size(0), blocks, rope.size(0));

  at::Tensor attended = at::empty({tokens, heads * head_dim}, qkv.options());
  step.attended = attended.mutable_data_ptr<float>();
  const AttentionKernels& kernels = attention_kernels();
  attend_all(kernels, step, static_cast<int>(sequences));
  return attended;
}

}  // namespace firstlight
