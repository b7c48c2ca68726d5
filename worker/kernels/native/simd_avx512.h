// Vectors of 16 floats in one register of AVX-512: see simd.h.
#pragma once

#include <immintrin.h>

#include <cstdint>
#include <cstring>

namespace firstlight {
namespace {

using Floats = __m512;  // 16 numbers
using Pairs = __m512i;  // 16 pairs of bfloat16
using Mask = __mmask16;

inline Floats load(const float* from) { return _mm512_loadu_ps(from); }
inline void store(float* to, Floats x) { _mm512_storeu_ps(to, x); }
// Past the caches, to a multiple of 64 bytes.
inline void store_past(float* to, Floats x) { _mm512_stream_ps(to, x); }
inline Floats all(float x) { return _mm512_set1_ps(x); }
inline Floats add(Floats a, Floats b) { return _mm512_add_ps(a, b); }
inline Floats subtract(Floats a, Floats b) { return _mm512_sub_ps(a, b); }
inline Floats multiply(Floats a, Floats b) { return _mm512_mul_ps(a, b); }
inline Floats divide(Floats a, Floats b) { return _mm512_div_ps(a, b); }
inline Floats multiply_add(Floats a, Floats b, Floats c) { return _mm512_fmadd_ps(a, b, c); }
// Where one is NaN, the second.
inline Floats maximum(Floats a, Floats b) { return _mm512_max_ps(a, b); }
inline Floats minimum(Floats a, Floats b) { return _mm512_min_ps(a, b); }
inline Floats absolute(Floats x) { return _mm512_abs_ps(x); }
inline float largest(Floats x) { return _mm512_reduce_max_ps(x); }
inline float total(Floats x) { return _mm512_reduce_add_ps(x); }
// Numbers `first` to `last` - 1 are chosen; both may lie outside 0..16.
inline Mask between(int first, int last) {
  const Mask below_last = last >= 16 ? 0xffff : last <= 0 ? 0 : (1u << last) - 1;
  const Mask below_first = first >= 16 ? 0xffff : first <= 0 ? 0 : (1u << first) - 1;
  return below_last & ~below_first;
}
inline Floats choose(Mask mask, Floats chosen, Floats other) {
  return _mm512_mask_blend_ps(mask, other, chosen);
}
inline Mask at_least(Floats x, Floats least) {  // false where one is NaN
  return _mm512_cmp_ps_mask(x, least, _CMP_GE_OQ);
}
inline Floats nan_to_zero(Floats x) {
  return _mm512_maskz_mov_ps(_mm512_cmp_ps_mask(x, x, _CMP_ORD_Q), x);
}
// 2^x within 4e-6, exact for whole numbers, zero far below; NaN stays NaN.
inline Floats power_of_two(Floats x) {
  const Floats fraction = _mm512_reduce_ps(x, 0x09);  // x - floor(x), 0 of infinities
  Floats power = all(0.013555746525526047f);
  power = multiply_add(power, fraction, all(0.05203237012028694f));
  power = multiply_add(power, fraction, all(0.2413797676563263f));
  power = multiply_add(power, fraction, all(0.6930321455001831f));
  power = multiply_add(power, fraction, all(1.0f));
  return _mm512_scalef_ps(power, x);  // by the power floor(x)
}
inline Pairs load_pairs(const void* from) { return _mm512_loadu_si512(from); }
inline Pairs all_pairs(const void* from) {
  int32_t pair;
  memcpy(&pair, from, sizeof pair);
  return _mm512_set1_epi32(pair);
}

#if defined(__AVX512BF16__)
inline void store_bf16(void* to, Floats x) {
  _mm256_storeu_si256(static_cast<__m256i*>(to), (__m256i)_mm512_cvtneps_pbh(x));
}
// 32 numbers: `low` first.
inline void store_bf16(void* to, Floats low, Floats high) {
  _mm512_storeu_si512(to, (__m512i)_mm512_cvtne2ps_pbh(high, low));
}
inline Floats dot(Floats sum, Pairs a, Pairs b) {
  return _mm512_dpbf16_ps(sum, (__m512bh)a, (__m512bh)b);
}
#else
inline void store_bf16(void* to, Floats x) {
  const __m512i bits = _mm512_castps_si512(x);
  const __m512i odd = _mm512_and_si512(_mm512_srli_epi32(bits, 16), _mm512_set1_epi32(1));
  const __m512i rounded = _mm512_add_epi32(bits, _mm512_add_epi32(odd, _mm512_set1_epi32(0x7fff)));
  _mm256_storeu_si256(static_cast<__m256i*>(to),
                      _mm512_cvtepi32_epi16(_mm512_srli_epi32(rounded, 16)));
}
inline Floats even(Pairs x) { return _mm512_castsi512_ps(_mm512_slli_epi32(x, 16)); }
inline Floats odd(Pairs x) {
  return _mm512_castsi512_ps(_mm512_and_si512(x, _mm512_set1_epi32(int32_t(0xffff0000))));
}
inline Floats dot(Floats sum, Pairs a, Pairs b) {
  return multiply_add(odd(a), odd(b), multiply_add(even(a), even(b), sum));
}
#endif

// Numbers that bfloat16 holds, as they are multiplied with many pairs.
using Bf16Code = uint16_t;

inline void write_bf16_codes(Bf16Code* to, Floats x) { store_bf16(to, x); }
// Adds to each row's sums the products of pairs with its two codes, the first ones first.
template <int ROWS, int VECTORS>
inline void add_pairs(const Pairs (&pairs)[VECTORS], const Bf16Code* codes, int64_t stride,
                      Floats (&sums)[ROWS][VECTORS]) {
#pragma GCC unroll 8
  for (int row = 0; row < ROWS; ++row) {
    const Pairs both = all_pairs(codes + row * stride);
#pragma GCC unroll 4
    for (int vector = 0; vector < VECTORS; ++vector) {
      sums[row][vector] = dot(sums[row][vector], pairs[vector], both);
    }
  }
}

// 16 signed bytes as numbers.
inline Floats load_bytes(const void* from) {
  return _mm512_cvtepi32_ps(
      _mm512_cvtepi8_epi32(_mm_loadu_si128(static_cast<const __m128i*>(from))));
}
// To the nearest whole numbers, which must be within -128..127.
inline void store_bytes(void* to, Floats x) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(_mm512_cvtps_epi32(x)));
}

// Sums of four products of bytes each: of weights w, kept as w + 128, and of signed activations in
// -127..127. A sum starts from what the surplus of 128 will add, negated: -128 * their sum.
using Sums = __m512i;   // 16 whole numbers
using Quads = __m512i;  // 16 times 4 bytes

inline Sums no_sums() { return _mm512_setzero_si512(); }
inline Sums sums_of_surplus(int32_t surplus) { return _mm512_set1_epi32(surplus); }
inline Quads load_quads(const void* from) { return _mm512_loadu_si512(from); }
inline Quads all_quads(const void* from) { return all_pairs(from); }
inline Quads low_nibbles(Quads x) { return _mm512_and_si512(x, _mm512_set1_epi8(15)); }
inline Quads high_nibbles(Quads x) { return low_nibbles(_mm512_srli_epi16(x, 4)); }
inline Sums dot_bytes(Sums sums, Quads weights, Quads activations) {
  return _mm512_dpbusd_epi32(sums, weights, activations);
}
inline Floats to_floats(Sums x) { return _mm512_cvtepi32_ps(x); }
inline Floats load_halves(const void* from) {  // float16
  return _mm512_cvtph_ps(_mm256_loadu_si256(static_cast<const __m256i*>(from)));
}
// To the nearest float16, and back.
inline Floats rounded_to_half(Floats x) {
  return _mm512_cvtph_ps(_mm512_cvtps_ph(x, _MM_FROUND_TO_NEAREST_INT | _MM_FROUND_NO_EXC));
}
// The first `count` of 16 numbers.
inline void store_first(float* to, Floats x, int count) {
  _mm512_mask_storeu_ps(to, between(0, count), x);
}
inline int32_t total(Sums x) { return _mm512_reduce_add_epi32(x); }
inline Sums to_whole(Floats x) { return _mm512_cvtps_epi32(x); }
inline void store_whole_bytes(void* to, Sums x) {
  _mm_storeu_si128(static_cast<__m128i*>(to), _mm512_cvtepi32_epi8(x));
}
inline Sums add(Sums a, Sums b) { return _mm512_add_epi32(a, b); }

}  // namespace
}  // namespace firstlight
