// A token's heads: how they become numbers for the dot product, and how the pool keeps them.
#pragma once

#include <cmath>

#include "attention.h"
#include "simd.h"

namespace firstlight {
namespace {

constexpr float kLargestBf16 = 3.38953138925153547590e38f;
constexpr int kMostDim = 256;

int group_of(const AttentionStep& step) { return step.heads / step.kv_heads; }

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
  const int64_t block = table[position >> step.block_bits];
  const int64_t run = block >> step.run_bits, place = block - (run << step.run_bits);
  const int64_t of_head = (int64_t(kv_head) << step.run_bits) + place;
  return step.pool + run * step.run_stride + of_head * step.layout.bytes;
}

int slot_at(const AttentionStep& step, int position) {
  return position & ((1 << step.block_bits) - 1);
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

void keep(const AttentionStep& step, int sequence, int kv_head, int first, int count) {
  const int64_t width = int64_t(step.heads + 2 * step.kv_heads) * step.head_dim;
  const int position = step.ends[sequence] - step.starts[sequence + 1] + first;
  uint8_t* block = block_at(step, sequence, kv_head, position);
  float key[kMostDim];
  float value[kMostDim];
  for (int i = 0; i < count; ++i) {
    const float* token = step.qkv + (first + i) * width;
    const float* from = token + int64_t(step.heads + kv_head) * step.head_dim;
    prepare_head(step, from, step.key_norm, position + i, key);
    load_head(value, from + int64_t(step.kv_heads) * step.head_dim, step.head_dim, step.layout.dim);
    make_finite(key, step.layout.dim);
    make_finite(value, step.layout.dim);
    const int slot = slot_at(step, position + i);
    if (step.is_int8) {
      keep_int8(step.layout, block, slot, key, value);
    } else {
      keep_bf16(step.layout, block, slot, key, value);
    }
  }
}

}  // namespace
}  // namespace firstlight
