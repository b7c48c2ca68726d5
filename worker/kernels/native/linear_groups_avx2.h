// Groups of inputs with AVX2.
//
// It has no dot product of bfloat16: tokens are kept as floats that bfloat16 holds exactly, and
// weights become floats in registers, once for all tokens of a tile. Nor does it sum up four products
// of bytes: two add up to 16 bits, which weights of magnitude 128 just fit. Of weights of 4 bits the
// products of a whole group do.
//
// Groups are not inlined: beside what surrounds them the compiler keeps half of the sums in memory.
#pragma once

namespace firstlight {
namespace {

inline __m256i load_half(const uint8_t* from) {
  return _mm256_loadu_si256(reinterpret_cast<const __m256i*>(from));
}

// Adds the products of a tile's weights of one input, in HALVES registers, with each token's number.
template <int HALVES, int ROWS>
inline void add_input(const __m256 (&numbers)[HALVES], const float* codes, int64_t stride,
                      __m256 (&sums)[HALVES][ROWS]) {
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row) {
    const __m256 number = _mm256_broadcast_ss(codes + row * stride);
#pragma GCC unroll 4
    for (int half = 0; half < HALVES; ++half) {
      sums[half][row] = _mm256_fmadd_ps(numbers[half], number, sums[half][row]);
    }
  }
}

// Bytes before a number is needed that a tile which reads its block alone asks for it.
constexpr int64_t kBytesAhead = 1024;

// All groups of a block. Twelve sums are too many to be kept in memory between groups: they stay in
// registers from the first input to the last.
template <int VECTORS, int ROWS>
__attribute__((noinline)) void add_bf16_groups(const uint8_t* weights, int first,
                                               const Tokens& tokens, int64_t token,
                                               const Ahead& ahead,
                                               Accumulators<VECTORS, ROWS>& sums) {
  constexpr int kHalves = 2 * VECTORS;
  const int64_t stride = tokens.groups * kGroup, lines = ahead.lines_per_group;
  const float* codes = static_cast<const float*>(tokens.codes) + token * stride;
  const float* last = codes + stride;
  const uint8_t* pairs = weights + first * 64;
  const uint8_t* coming = ahead.from;
  __m256 halves[kHalves][ROWS] = {};
#pragma GCC unroll 1
  for (; codes < last; coming += lines * kLine) {
#pragma GCC unroll 1
    for (int pair = 0; pair < kGroup / 2; ++pair, pairs += 128, codes += 2) {
      if constexpr (VECTORS == kBlock / 16) {
        fetch_soon(pairs + kBytesAhead);
        fetch_soon(pairs + kBytesAhead + kLine);
      } else if (pair < lines) {
        fetch(coming + pair * kLine);
      }
      __m256 numbers[kHalves];
#pragma GCC unroll 4
      for (int half = 0; half < kHalves; ++half) numbers[half] = even(load_half(pairs + half * 32));
      add_input<kHalves, ROWS>(numbers, codes, stride, halves);
#pragma GCC unroll 4
      for (int half = 0; half < kHalves; ++half) numbers[half] = odd(load_half(pairs + half * 32));
      add_input<kHalves, ROWS>(numbers, codes + 1, stride, halves);
    }
  }
#pragma GCC unroll 12
  for (int i = 0; i < VECTORS * ROWS; ++i) {
    sums[i / ROWS][i % ROWS] = {halves[i / ROWS * 2][i % ROWS], halves[i / ROWS * 2 + 1][i % ROWS]};
  }
}

// Sums of products of whole numbers, one a register: of 8 outputs of a token, 4-bit ones in two
// halves of 16 bits each.
template <int HALVES, int ROWS>
using Products = __m256i[HALVES][ROWS];

// Adds products of four bytes, magnitudes up to 128 and codes in -127..127: two products fill 16
// bits at most.
inline void add_quads(__m256i& sum, __m256i magnitudes, __m256i codes) {
  const __m256i pairs = _mm256_maddubs_epi16(magnitudes, codes);
  sum = _mm256_add_epi32(sum, _mm256_madd_epi16(pairs, _mm256_set1_epi16(1)));
  // Else the compiler adds up products first, and keeps more of them than there are registers.
  asm("" : "+x"(sum));
}

template <int VECTORS, int ROWS>
__attribute__((noinline)) void add_int8_group(const uint8_t* weights, int first,
                                              const Tokens& tokens, int64_t token, int64_t group,
                                              Accumulators<VECTORS, ROWS>& sums) {
  constexpr int kHalves = 2 * VECTORS;
  const int64_t stride = tokens.groups * kGroup;
  const int8_t* codes = static_cast<const int8_t*>(tokens.codes) + token * stride + group * kGroup;
  const int64_t place = token * tokens.groups + group;
  Products<kHalves, ROWS> products = {};
  const uint8_t* quads = weights + first * 64;
#pragma GCC unroll 1
  for (int quad = 0; quad < kGroup / 4; ++quad, quads += 128, codes += 4) {
    if constexpr (VECTORS == kBlock / 16) {
      fetch_soon(quads + kBytesAhead);
      fetch_soon(quads + kBytesAhead + kLine);
    }
    __m256i numbers[kHalves];
#pragma GCC unroll 4
    for (int half = 0; half < kHalves; ++half) {  // without the surplus of 128
      numbers[half] = _mm256_xor_si256(load_half(quads + half * 32), _mm256_set1_epi8(-128));
    }
#pragma GCC unroll 6
    for (int row = 0; row < ROWS; ++row) {
      const __m256i four = all_pairs(codes + row * stride).low;
#pragma GCC unroll 4
      for (int half = 0; half < kHalves; ++half) {
        add_quads(products[half][row], _mm256_abs_epi8(numbers[half]),
                  _mm256_sign_epi8(four, numbers[half]));
      }
    }
  }
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row) {
    const Floats scale = all(tokens.scales[place + row * tokens.groups]);
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      const Floats product =
          to_floats(Sums{products[2 * vector][row], products[2 * vector + 1][row]});
      sums[vector][row] = multiply_add(scale, product, sums[vector][row]);
    }
  }
}

// Adds the products of nibbles, of the quads at `codes` of each token, to sums of 16 bits: a group
// gives one of them 16 products, of at most 15 * 127.
template <int HALVES, int ROWS>
inline void add_nibbles(const __m256i (&numbers)[HALVES], const int8_t* codes, int64_t stride,
                        Products<HALVES, ROWS>& products) {
#pragma GCC unroll 6
  for (int row = 0; row < ROWS; ++row) {
    const __m256i four = all_pairs(codes + row * stride).low;
#pragma GCC unroll 4
    for (int half = 0; half < HALVES; ++half) {
      __m256i& sum = products[half][row];
      sum = _mm256_add_epi16(sum, _mm256_maddubs_epi16(numbers[half], four));
      asm("" : "+x"(sum));  // as in add_quads
    }
  }
}

template <int VECTORS, int ROWS>
__attribute__((noinline)) void add_int4_group(const uint8_t* weights, int first,
                                              const Tokens& tokens, int64_t token, int64_t group,
                                              Accumulators<VECTORS, ROWS>& sums) {
  constexpr int kHalves = 2 * VECTORS;
  const __m256i nibbles = _mm256_set1_epi8(15);
  const int64_t stride = tokens.groups * kGroup;
  const int8_t* codes = static_cast<const int8_t*>(tokens.codes) + token * stride + group * kGroup;
  Products<kHalves, ROWS> products = {};
  if constexpr (VECTORS == kBlock / 16) {
    for (int64_t byte = 0; byte < group_bytes(Kind::kInt4); byte += kLine) {
      fetch_soon(weights + kBytesAhead + byte);
    }
  }
#pragma GCC unroll 1
  for (int quad = 0; quad < kGroup / 8; ++quad, codes += 4) {
    const uint8_t* from = weights + first * 256 + quad * 64;
    __m256i numbers[kHalves];
#pragma GCC unroll 4
    for (int half = 0; half < kHalves; ++half) {
      numbers[half] = _mm256_and_si256(load_half(from + half / 2 * 256 + half % 2 * 32), nibbles);
    }
    add_nibbles<kHalves, ROWS>(numbers, codes, stride, products);
#pragma GCC unroll 4
    for (int half = 0; half < kHalves; ++half) {
      const __m256i both = load_half(from + half / 2 * 256 + half % 2 * 32);
      numbers[half] = _mm256_and_si256(_mm256_srli_epi16(both, 4), nibbles);
    }
    add_nibbles<kHalves, ROWS>(numbers, codes + kGroup / 2, stride, products);
  }
  const __m256i ones = _mm256_set1_epi16(1);
  Sums whole[VECTORS][ROWS];
#pragma GCC unroll 12
  for (int i = 0; i < VECTORS * ROWS; ++i) {
    const int vector = i / ROWS, row = i % ROWS;
    whole[vector][row] = {_mm256_madd_epi16(products[2 * vector][row], ones),
                          _mm256_madd_epi16(products[2 * vector + 1][row], ones)};
  }
  add_scaled_int4<VECTORS, ROWS>(weights, first, tokens, token * tokens.groups + group, whole,
                                 sums);
}

}  // namespace
}  // namespace firstlight
