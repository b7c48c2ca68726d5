// Vectors of 16 floats, by whichever instructions this source is compiled for.
#pragma once

#if defined(__AVX512F__)
#include "simd_avx512.h"
#else
#include "simd_avx2.h"
#endif

namespace firstlight {
namespace {

#if !defined(__AVX512BF16__)
inline void store_bf16(void* to, Floats low, Floats high) {
  store_bf16(to, low);
  store_bf16(static_cast<uint16_t*>(to) + 16, high);
}
#endif

// 16 pairs of signed bytes as pairs of bfloat16, which holds them exactly.
inline Pairs load_bytes_as_pairs(const void* from) {
  const Floats low = load_bytes(from);
  const Floats high = load_bytes(static_cast<const int8_t*>(from) + 16);
#if defined(__AVX512BF16__)
  return (Pairs)_mm512_cvtne2ps_pbh(high, low);
#else
  uint16_t numbers[32];
  store_bf16(numbers, low, high);
  return load_pairs(numbers);
#endif
}

// Into the second-level cache: the first has few lines that it can wait for at once. Fetching keys
// and values there read 19 GB/s with one core, into the first level 12, not at all 16.
inline void fetch(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T1);
}

// Into the first level: what is needed at once.
inline void fetch_soon(const void* line) {
  _mm_prefetch(static_cast<const char*>(line), _MM_HINT_T0);
}

// Fills whole vectors: up to 15 numbers more than `count`.
inline void fill(float* to, float x, int64_t count) {
  for (int64_t i = 0; i < count; i += 16) store(to + i, all(x));
}

}  // namespace
}  // namespace firstlight
