// Groups of inputs with AVX-512: pairs of bfloat16 and quads of bytes by one instruction each.
#pragma once

namespace firstlight {
namespace {

template <int VECTORS, int ROWS>
inline void add_bf16_group(const uint8_t* weights, int first, const Tokens& tokens, int64_t token,
                           int64_t group, Accumulators<VECTORS, ROWS>& sums) {
  const int64_t row_bytes = tokens.groups * kGroup * 2;
  const uint8_t* codes =
      static_cast<const uint8_t*>(tokens.codes) + token * row_bytes + group * kGroup * 2;
#pragma GCC unroll 16
  for (int pair = 0; pair < kGroup / 2; ++pair) {
    Pairs numbers[VECTORS];
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      numbers[vector] = load_pairs(weights + pair * 128 + (first + vector) * 64);
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      const Pairs both = all_pairs(codes + row * row_bytes + pair * 4);
#pragma GCC unroll 2
      for (int vector = 0; vector < VECTORS; ++vector) {
        sums[vector][row] = dot(sums[vector][row], numbers[vector], both);
      }
    }
  }
}

template <int VECTORS, int ROWS>
inline void add_bf16_groups(const uint8_t* weights, int first, const Tokens& tokens, int64_t token,
                            const Ahead& ahead, Accumulators<VECTORS, ROWS>& sums) {
  for (int64_t group = 0; group < tokens.groups; ++group) {
    if constexpr (ROWS >= kFewestRowsBesideOthers<Kind::kBf16>) ahead.fetch(group);
    const uint8_t* here = weights + group * group_bytes(Kind::kBf16);
    add_bf16_group<VECTORS, ROWS>(here, first, tokens, token, group, sums);
  }
}

template <int VECTORS, int ROWS>
inline void add_int8_group(const uint8_t* weights, int first, const Tokens& tokens, int64_t token,
                           int64_t group, Accumulators<VECTORS, ROWS>& sums) {
  const int64_t row_bytes = tokens.groups * kGroup;
  const int8_t* codes =
      static_cast<const int8_t*>(tokens.codes) + token * row_bytes + group * kGroup;
  const int64_t place = token * tokens.groups + group;
  Sums products[VECTORS][ROWS];
#pragma GCC unroll 12
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      products[vector][row] = sums_of_surplus(tokens.surpluses[place + row * tokens.groups]);
    }
  }
#pragma GCC unroll 8
  for (int quad = 0; quad < kGroup / 4; ++quad) {
    Quads numbers[VECTORS];
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      numbers[vector] = load_quads(weights + quad * 128 + (first + vector) * 64);
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      const Quads four = all_quads(codes + row * row_bytes + quad * 4);
#pragma GCC unroll 2
      for (int vector = 0; vector < VECTORS; ++vector) {
        products[vector][row] = dot_bytes(products[vector][row], numbers[vector], four);
      }
    }
  }
#pragma GCC unroll 12
  for (int row = 0; row < ROWS; ++row) {
    const Floats scale = all(tokens.scales[place + row * tokens.groups]);
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      sums[vector][row] = multiply_add(scale, to_floats(products[vector][row]), sums[vector][row]);
    }
  }
}

template <int VECTORS, int ROWS>
inline void add_int4_group(const uint8_t* weights, int first, const Tokens& tokens, int64_t token,
                           int64_t group, Accumulators<VECTORS, ROWS>& sums) {
  const int64_t row_bytes = tokens.groups * kGroup;
  const int8_t* codes =
      static_cast<const int8_t*>(tokens.codes) + token * row_bytes + group * kGroup;
  const int64_t place = token * tokens.groups + group;
  Sums products[VECTORS][ROWS];
#pragma GCC unroll 12
  for (int row = 0; row < ROWS; ++row) {
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) products[vector][row] = no_sums();
  }
#pragma GCC unroll 4
  for (int quad = 0; quad < kGroup / 8; ++quad) {
    Quads low[VECTORS];
    Quads high[VECTORS];
#pragma GCC unroll 2
    for (int vector = 0; vector < VECTORS; ++vector) {
      const Quads both = load_quads(weights + (first + vector) * 256 + quad * 64);
      low[vector] = low_nibbles(both);
      high[vector] = high_nibbles(both);
    }
#pragma GCC unroll 12
    for (int row = 0; row < ROWS; ++row) {
      const Quads near = all_quads(codes + row * row_bytes + quad * 4);
      const Quads far = all_quads(codes + row * row_bytes + quad * 4 + kGroup / 2);
#pragma GCC unroll 2
      for (int vector = 0; vector < VECTORS; ++vector) {
        const Sums sum = dot_bytes(products[vector][row], low[vector], near);
        products[vector][row] = dot_bytes(sum, high[vector], far);
      }
    }
  }
  add_scaled_int4<VECTORS, ROWS>(weights, first, tokens, place, products, sums);
}

}  // namespace
}  // namespace firstlight
