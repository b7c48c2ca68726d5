// Codes of weights, compiled once per instruction set: worker/quantization/int8.py and int4.py say
// how they are found, and are what these are tested against.
#include <cstring>

#include "level.h"
#include "rounding.h"
#include "simd.h"

namespace firstlight {
namespace {

constexpr float kInt8Most = 127.0f;
constexpr float kInt4Most = 15.0f;
constexpr float kCuts[] = {0.0f, 0.04f, 0.1f};
constexpr float kLeastScale = 1.0f / (1 << 24);  // of float16
constexpr float kMost = 65504.0f;

Floats clamp(Floats x, float least, float most) {
  return minimum(maximum(x, all(least)), all(most));
}

float row_to_int8(const float* row, int64_t count, int8_t* codes) {
  Floats magnitudes = all(0.0f);
  for (int64_t i = 0; i < count; i += 16) magnitudes = maximum(absolute(load(row + i)), magnitudes);
  const float most = largest(magnitudes) / kInt8Most;
  const float scale = most == 0.0f ? 1.0f : most;
  int64_t i = 0;
  const auto coded = [&] {
    return clamp(divide(load(row + i), all(scale)), -kInt8Most, kInt8Most);
  };
  for (; i + 16 <= count; i += 16) store_bytes(codes + i, coded());
  if (i < count) {
    int8_t last[16];
    store_bytes(last, coded());
    memcpy(codes + i, last, count - i);
  }
  return scale;
}

// Scales and offsets of 16 groups, and how much of each group's variance they explain.
struct Line {
  Floats scale, offset, gain;
};

Line better(const Line& a, const Line& b) {
  const Mask stays = at_least(a.gain, b.gain);
  return {choose(stays, a.scale, b.scale), choose(stays, a.offset, b.offset),
          choose(stays, a.gain, b.gain)};
}

Sums code(Floats x, Floats inverse, Floats offset) {
  return to_whole(clamp(multiply(subtract(x, offset), inverse), 0.0f, kInt4Most));
}

Floats weighted(Floats x, const Floats* importance, int64_t i) {
  return importance == nullptr ? x : multiply(x, importance[i]);
}

// The line with the least squared error through the codes that this scale and offset give.
Line fit(const Floats* x, const Floats* importance, Floats scale, Floats offset) {
  const Floats inverse = divide(all(1.0f), scale);
  // Two of each, for the even and the odd: a sum waits for the one before.
  Floats codes[2] = {all(0.0f), all(0.0f)};
  Floats squares[2] = {all(0.0f), all(0.0f)};
  Floats products[2] = {all(0.0f), all(0.0f)};
  for (int64_t i = 0; i < kGroup; i += 2) {
    for (int odd = 0; odd < 2; ++odd) {
      const Floats c = to_floats(code(x[i + odd], inverse, offset));
      const Floats counted = weighted(c, importance, i + odd);
      codes[odd] = add(codes[odd], counted);
      squares[odd] = multiply_add(counted, c, squares[odd]);
      products[odd] = multiply_add(counted, x[i + odd], products[odd]);
    }
  }
  const Floats mean = multiply(add(codes[0], codes[1]), all(1.0f / kGroup));
  const Floats spread = subtract(add(squares[0], squares[1]),
                                 multiply(multiply(mean, mean), all(float(kGroup))));
  const Floats product = add(products[0], products[1]);
  const Floats slope = divide(product, maximum(spread, all(1e-6f)));
  return {slope, subtract(all(0.0f), multiply(slope, mean)), multiply(slope, product)};
}

// `x` has the mean 0.
Line best_line(const Floats* x, const Floats* importance) {
  Floats least = x[0], most = x[0];
  for (int64_t i = 1; i < kGroup; ++i) {
    least = minimum(least, x[i]);
    most = maximum(most, x[i]);
  }
  const Floats spread = maximum(subtract(most, least), all(kLeastScale));
  Line best = {all(0.0f), all(0.0f), all(-1.0f)};
  for (float low : kCuts) {
    for (float high : kCuts) {
      const Floats scale = multiply(spread, all((1.0f - low - high) / kInt4Most));
      const Floats offset = multiply_add(spread, all(low), least);
      best = better(best, fit(x, importance, scale, offset));
    }
  }
  const Floats scale = maximum(best.scale, all(kLeastScale));
  return better(best, fit(x, importance, scale, best.offset));
}

void round_groups(const float* numbers, const Floats* importance, uint8_t* codes, float* scale,
                  float* offset) {
  Floats x[kGroup];
  Floats mean = all(0.0f);
  for (int64_t i = 0; i < kGroup; ++i) {
    x[i] = load(numbers + i * kGroupsAtOnce);
    mean = add(mean, weighted(x[i], importance, i));
  }
  mean = multiply(mean, all(1.0f / kGroup));
  for (Floats& each : x) each = subtract(each, mean);
  const Line line = best_line(x, importance);
  const Floats step = rounded_to_half(clamp(line.scale, kLeastScale, kMost));
  const Floats least = rounded_to_half(clamp(add(line.offset, mean), -kMost, kMost));
  store(scale, step);
  store(offset, least);
  const Floats inverse = divide(all(1.0f), step);
  const Floats from = subtract(least, mean);
  for (int64_t i = 0; i < kGroup; ++i) {
    store_whole_bytes(codes + i * kGroupsAtOnce, code(x[i], inverse, from));
  }
}

void groups_to_int4(const float* numbers, const float* importance, uint8_t* codes, float* scale,
                    float* offset) {
  if (importance == nullptr) return round_groups(numbers, nullptr, codes, scale, offset);
  Floats counts[kGroup];
  for (int64_t i = 0; i < kGroup; ++i) counts[i] = load(importance + i * kGroupsAtOnce);
  round_groups(numbers, counts, codes, scale, offset);
}

}  // namespace

extern const RoundingKernels FIRSTLIGHT_TABLE(rounding, FIRSTLIGHT_LEVEL);
const RoundingKernels FIRSTLIGHT_TABLE(rounding, FIRSTLIGHT_LEVEL) = {row_to_int8, groups_to_int4};

}  // namespace firstlight
