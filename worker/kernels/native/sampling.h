// What the sampling operators (sampling.cpp) and their kernels (sampling_kernels.cpp) tell each
// other; see linear.h. Kernels pass over a whole row of logits, the operators look at few of them.
#pragma once

#include <cstdint>

namespace firstlight {

// The logits of one token; `allowed` has a bit for each, or is null. What is not allowed is -inf.
struct LogitRow {
  const float* logits;
  int64_t count;
  const uint32_t* allowed;
};

// A logit's weight is 2^((logit - largest) * scale): 1 for the largest.
struct Weighing {
  float largest;
  float scale;
};

struct Candidate {
  float logit;
  float weight;
  int32_t token;
};

struct SamplingKernels {
  // NaN where any logit is NaN.
  float (*largest)(const LogitRow&);

  // The first token with a logit of at least this.
  int32_t (*first_at_least)(const LogitRow&, float logit);

  // The sum of all weights.
  double (*mass)(const LogitRow&, Weighing);

  // Tokens in their order whose logits are at least `from` and not as large as `below`, without
  // those whose weight is 0; says how many.
  int64_t (*collect)(const LogitRow&, Weighing, float from, float below, Candidate* to);

  // The `count` largest logits, of equal ones the first, in this order; their weights are not set.
  void (*likeliest)(const LogitRow&, int64_t count, Candidate* to);
};

}  // namespace firstlight
