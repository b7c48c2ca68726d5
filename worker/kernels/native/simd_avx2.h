// Vectors of 16 floats in two registers of AVX2: see simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace firstlight {
namespace {

struct Floats {
  __m256 low, high;
};
struct Pairs {
  __m256i low, high;
};
using Mask = uint32_t;

inline Floats load(const float* from) { return {_mm256_loadu_ps(from), _mm256_loadu_ps(from + 8)}; }
inline void store(float* to, Floats x) {
  _mm256_storeu_ps(to, x.low);
  _mm256_storeu_ps(to + 8, x.high);
}
// Past the caches, to a multiple of 64 bytes.
inline void store_past(float* to, Floats x) {
  _mm256_stream_ps(to, x.low);
  _mm256_stream_ps(to + 8, x.high);
}
inline Floats all(float x) { return {_mm256_set1_ps(x), _mm256_set1_ps(x)}; }
inline Floats add(Floats a, Floats b) {
  return {_mm256_add_ps(a.low, b.low), _mm256_add_ps(a.high, b.high)};
}
inline Floats subtract(Floats a, Floats b) {
  return {_mm256_sub_ps(a.low, b.low), _mm256_sub_ps(a.high, b.high)};
}
inline Floats multiply(Floats a, Floats b) {
  return {_mm256_mul_ps(a.low, b.low), _mm256_mul_ps(a.high, b.high)};
}
inline Floats divide(Floats a, Floats b) {
  return {_mm256_div_ps(a.low, b.low), _mm256_div_ps(a.high, b.high)};
}
inline Floats multiply_add(Floats a, Floats b, Floats c) {
  return {_mm256_fmadd_ps(a.low, b.low, c.low), _mm256_fmadd_ps(a.high, b.high, c.high)};
}
inline Floats maximum(Floats a, Floats b) {
  return {_mm256_max_ps(a.low, b.low), _mm256_max_ps(a.high, b.high)};
}
inline Floats minimum(Floats a, Floats b) {
  return {_mm256_min_ps(a.low, b.low), _mm256_min_ps(a.high, b.high)};
}
inline Floats absolute(Floats x) {
  const __m256 sign = _mm256_set1_ps(-0.0f);
  return {_mm256_andnot_ps(sign, x.low), _mm256_andnot_ps(sign, x.high)};
}
inline float largest(Floats x) {
  const __m256 eight = _mm256_max_ps(x.low, x.high);
  __m128 four = _mm_max_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_max_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_max_ss(four, _mm_movehdup_ps(four)));
}
inline float total(Floats x) {
  const __m256 eight = _mm256_add_ps(x.low, x.high);
  __m128 four = _mm_add_ps(_mm256_castps256_ps128(eight), _mm256_extractf128_ps(eight, 1));
  four = _mm_add_ps(four, _mm_movehl_ps(four, four));
  return _mm_cvtss_f32(_mm_add_ss(four, _mm_movehdup_ps(four)));
}
inline Mask between(int first, int last) {
  const Mask below_last = last >= 16 ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
  const Mask below_first = first >= 16 ? 0xffff : first <= 0 ? 0 : (1u << first) - 1;
  return below_last & ~below_first;
}
inline __m256 lanes(Mask mask) {  // of the lowest 8 bits
  const __m256i bit = _mm256_setr_epi32(1, 2, 4, 8, 16, 32, 64, 128);
  const __m256i chosen = _mm256_and_si256(_mm256_set1_epi32(int32_t(mask)), bit);
  return _mm256_castsi256_ps(_mm256_cmpeq_epi32(chosen, bit));
}
inline Floats choose(Mask mask, Floats chosen, Floats other) {
  return {_mm256_blendv_ps(other.low, chosen.low, lanes(mask)),
          _mm256_blendv_ps(other.high, chosen.high, lanes(mask >> 8))};
}
inline Mask at_least(Floats x, Floats least) {
  return _mm256_movemask_ps(_mm256_cmp_ps(x.low, least.low, _CMP_GE_OQ)) |
         _mm256_movemask_ps(_mm256_cmp_ps(x.high, least.high, _CMP_GE_OQ)) << 8;
}
inline Floats nan_to_zero(Floats x) {
  return {_mm256_and_ps(x.low, _mm256_cmp_ps(x.low, x.low, _CMP_ORD_Q)),
          _mm256_and_ps(x.high, _mm256_cmp_ps(x.high, x.high, _CMP_ORD_Q))};
}
inline __m256 power_of_two(__m256 x) {
  x = _mm256_max_ps(_mm256_set1_ps(-127.0f), x);
  const __m256 whole = _mm256_floor_ps(x);
  const __m256 fraction = _mm256_sub_ps(x, whole);
  __m256 power = _mm256_set1_ps(0.013555746525526047f);
  power = _mm256_fmadd_ps(power, fraction, _mm256_set1_ps(0.05203237012028694f));
  power = _mm256_fmadd_ps(power, fraction, _mm256_set1_ps(0.2413797676563263f));
  power = _mm256_fmadd_ps(power, fraction, _mm256_set1_ps(0.6930321455001831f));
  power = _mm256_fmadd_ps(power, fraction, _mm256_set1_ps(1.0f));
  // 2^whole by its bits: an exponent of -127 + 127 = 0 is zero itself.
  const __m256i exponent = _mm256_add_epi32(_mm256_cvtps_epi32(whole), _mm256_set1_epi32(127));
  return _mm256_mul_ps(power, _mm256_castsi256_ps(_mm256_slli_epi32(exponent, 23)));
}
inline Floats power_of_two(Floats x) { return {power_of_two(x.low), power_of_two(x.high)}; }
inline Pairs load_pairs(const void* from) {
  const __m256i* halves = static_cast<const __m256i*>(from);
  return {_mm256_loadu_si256(halves), _mm256_loadu_si256(halves + 1)};
}
inline Pairs all_pairs(const void* from) {
  int32_t pair;
  memcpy(&pair, from, sizeof pair);
  return {_mm256_set1_epi32(pair), _mm256_set1_epi32(pair)};
}
inline __m256i rounded_to_bf16(__m256 x) {  // in the upper halves
  const __m256i bits = _mm256_castps_si256(x);
  const __m256i odd = _mm256_and_si256(_mm256_srli_epi32(bits, 16), _mm256_set1_epi32(1));
  return _mm256_add_epi32(bits, _mm256_add_epi32(odd, _mm256_set1_epi32(0x7fff)));
}
inline void store_bf16(void* to, Floats x) {
  const __m256i low = _mm256_srli_epi32(rounded_to_bf16(x.low), 16);
  const __m256i high = _mm256_srli_epi32(rounded_to_bf16(x.high), 16);
  // Packing goes by halves of 128 bits: 0 2 1 3 puts them into order again.
  _mm256_storeu_si256(static_cast<__m256i*>(to),
                      _mm256_permute4x64_epi64(_mm256_packus_epi32(low, high), 0xd8));
}
// Numbers that bfloat16 holds, as they are multiplied with many pairs: floats, whose conversion is
// not repeated.
using Bf16Code = float;

inline void write_bf16_codes(Bf16Code* to, Floats x) {
  const __m256i upper = _mm256_set1_epi32(int32_t(0xffff0000));
  store(to, {_mm256_castsi256_ps(_mm256_and_si256(rounded_to_bf16(x.low), upper)),
             _mm256_castsi256_ps(_mm256_and_si256(rounded_to_bf16(x.high), upper))});
}
inline __m256 even(__m256i x) { return _mm256_castsi256_ps(_mm256_slli_epi32(x, 16)); }
inline __m256 odd(__m256i x) {
  return _mm256_castsi256_ps(_mm256_and_si256(x, _mm256_set1_epi32(int32_t(0xffff0000))));
}
template <int ROWS, int VECTORS>
inline void add_numbers(const Floats (&numbers)[VECTORS], const Bf16Code* codes, int64_t stride,
                        Floats (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
    const Floats code = all(codes[row * stride]);
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) {
      sums[row][vector] = multiply_add(numbers[vector], code, sums[row][vector]);
    }
  }
}
template <int ROWS, int VECTORS>
inline void add_pairs(const Pairs (&pairs)[VECTORS], const Bf16Code* codes, int64_t stride,
                      Floats (&sums)[ROWS][VECTORS]) {
  Floats numbers[VECTORS];
#pragma GCC unroll 4
  for (int vector = 0; vector < VECTORS; ++vector) {
    numbers[vector] = {even(pairs[vector].low), even(pairs[vector].high)};
  }
  add_numbers<ROWS, VECTORS>(numbers, codes, stride, sums);
#pragma GCC unroll 4
  for (int vector = 0; vector < VECTORS; ++vector) {
    numbers[vector] = {odd(pairs[vector].low), odd(pairs[vector].high)};
  }
  add_numbers<ROWS, VECTORS>(numbers, codes + 1, stride, sums);
}
inline Floats load_bytes(const void* from) {
  const __m128i bytes = _mm_loadu_si128(static_cast<const __m128i*>(from));
  return {_mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(bytes)),
          _mm256_cvtepi32_ps(_mm256_cvtepi8_epi32(_mm_srli_si128(bytes, 8)))};
}
inline void store_bytes(void* to, Floats x) {
  const __m256i words =
      _mm256_packs_epi32(_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high));
  const __m256i in_order = _mm256_permute4x64_epi64(words, 0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(to),
                   _mm_packs_epi16(_mm256_castsi256_si128(in_order),
                                   _mm256_extracti128_si256(in_order, 1)));
}

struct Sums {
  __m256i low, high;
};

inline Sums no_sums() { return {_mm256_setzero_si256(), _mm256_setzero_si256()}; }
inline Floats to_floats(Sums x) {
  return {_mm256_cvtepi32_ps(x.low), _mm256_cvtepi32_ps(x.high)};
}
inline Floats load_halves(const void* from) {
  const __m128i* halves = static_cast<const __m128i*>(from);
  return {_mm256_cvtph_ps(_mm_loadu_si128(halves)), _mm256_cvtph_ps(_mm_loadu_si128(halves + 1))};
}
inline __m256 rounded_to_half(__m256 x) {
  return _mm256_cvtph_ps(_mm256_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT));
}
inline Floats rounded_to_half(Floats x) {
  return {rounded_to_half(x.low), rounded_to_half(x.high)};
}
inline void store_first(float* to, Floats x, int count) {
  float numbers[16];
  store(numbers, x);
  for (int i = 0; i < count && i < 16; ++i) to[i] = numbers[i];
}
inline int32_t total(Sums x) {
  int32_t numbers[8];
  _mm256_storeu_si256(reinterpret_cast<__m256i*>(numbers), _mm256_add_epi32(x.low, x.high));
  int32_t sum = 0;
  for (int32_t number : numbers) sum += number;
  return sum;
}
inline Sums to_whole(Floats x) { return {_mm256_cvtps_epi32(x.low), _mm256_cvtps_epi32(x.high)}; }
inline void store_whole_bytes(void* to, Sums x) {
  const __m256i in_order = _mm256_permute4x64_epi64(_mm256_packs_epi32(x.low, x.high), 0xd8);
  _mm_storeu_si128(static_cast<__m128i*>(to),
                   _mm_packs_epi16(_mm256_castsi256_si128(in_order),
                                   _mm256_extracti128_si256(in_order, 1)));
}
inline Sums add(Sums a, Sums b) {
  return {_mm256_add_epi32(a.low, b.low), _mm256_add_epi32(a.high, b.high)};
}

}  // namespace
}  // namespace firstlight
