// What the operators that round weights (rounding.cpp) and their kernels (rounding_kernels.cpp)
// tell each other; see linear.h.
#pragma once

#include <cstdint>

#include "linear.h"

namespace firstlight {

constexpr int64_t kGroupsAtOnce = 16;  // a lane each

struct RoundingKernels {
  // Codes, and the scale that they have in common, of `count` numbers; `row` is readable, and zero,
  // up to the next multiple of 16.
  float (*row_to_int8)(const float* row, int64_t count, int8_t* codes);

  // Of 16 groups: numbers [kGroup, 16], codes [kGroup, 16], scales [16] and offsets [16]. Squared
  // errors count as `importance` says, [kGroup, 16] with kGroup as each group's sum; null: all alike.
  void (*groups_to_int4)(const float* numbers, const float* importance, uint8_t* codes,
                         float* scale, float* offset);
};

}  // namespace firstlight
