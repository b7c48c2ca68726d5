// Passes over a row of logits, compiled once per instruction set.
#include <algorithm>
#include <cmath>
#include <limits>

#include "sampling.h"
#include "level.h"
#include "simd.h"

namespace firstlight {
namespace {

constexpr float kInfinity = std::numeric_limits<float>::infinity();
constexpr int kVectorsOfSum = 64;  // added up in single precision

Mask allowed(const LogitRow& row, int64_t token) {
  return row.allowed == nullptr ? 0xffff : row.allowed[token / 32] >> (token % 32) & 0xffff;
}

// Calls act(16 logits, the first one's token); what is missing to 16, or not allowed, is -inf.
template <typename Act>
void for_vectors(const LogitRow& row, const Act& act) {
  int64_t i = 0;
  if (row.allowed == nullptr) {
    for (; i + 16 <= row.count; i += 16) act(load(row.logits + i), i);
  }
  for (; i + 16 <= row.count; i += 16) {
    const Mask mask = allowed(row, i);
    if (mask != 0) act(choose(mask, load(row.logits + i), all(-kInfinity)), i);
  }
  if (i < row.count) {
    float rest[16] = {};
    std::copy(row.logits + i, row.logits + row.count, rest);
    const Mask mask = between(0, static_cast<int>(row.count - i)) & allowed(row, i);
    act(choose(mask, load(rest), all(-kInfinity)), i);
  }
}

Floats weights(Floats logits, Weighing weighing) {
  return power_of_two(multiply(subtract(logits, all(weighing.largest)), all(weighing.scale)));
}

float largest(const LogitRow& row) {
  Floats most = all(-kInfinity), not_positive = all(0.0f);
  for_vectors(row, [&](Floats logits, int64_t) {
    most = maximum(logits, most);
    not_positive = add(not_positive, minimum(all(0.0f), logits));  // keeps NaN, `most` does not
  });
  return std::isnan(total(not_positive)) ? std::nanf("") : firstlight::largest(most);
}

int32_t first_at_least(const LogitRow& row, float logit) {
  int32_t first = -1;
  for_vectors(row, [&](Floats logits, int64_t token) {
    if (first >= 0) return;
    const Mask mask = at_least(logits, all(logit));
    if (mask != 0) first = static_cast<int32_t>(token) + __builtin_ctz(mask);
  });
  return first;
}

double mass(const LogitRow& row, Weighing weighing) {
  double sum = 0.0;
  Floats some = all(0.0f);
  int vectors = 0;
  for_vectors(row, [&](Floats logits, int64_t) {
    some = add(some, weights(logits, weighing));
    if (++vectors < kVectorsOfSum) return;
    sum += total(some);
    some = all(0.0f);
    vectors = 0;
  });
  return sum + total(some);
}

int64_t collect(const LogitRow& row, Weighing weighing, float from, float below, Candidate* to) {
  int64_t count = 0;
  for_vectors(row, [&](Floats logits, int64_t token) {
    const Mask mask = at_least(logits, all(from)) & ~at_least(logits, all(below));
    if (mask == 0) return;
    float logit[16], weight[16];
    store(logit, logits);
    store(weight, weights(logits, weighing));
    for (uint32_t rest = mask; rest != 0; rest &= rest - 1) {
      const int lane = __builtin_ctz(rest);
      to[count] = {logit[lane], weight[lane], static_cast<int32_t>(token) + lane};
      count += weight[lane] > 0.0f;
    }
  });
  return count;
}

// Puts a token among the `kept` best so far; the last of `count` falls out.
void insert(Candidate* best, int64_t kept, int64_t count, Candidate candidate) {
  int64_t place = std::min(kept, count - 1);
  for (; place > 0 && best[place - 1].logit < candidate.logit; --place) {
    best[place] = best[place - 1];
  }
  best[place] = candidate;
}

void likeliest(const LogitRow& row, int64_t count, Candidate* to) {
  int64_t kept = 0;
  for_vectors(row, [&](Floats logits, int64_t token) {
    const bool is_full = kept == count;
    if (is_full && at_least(logits, all(to[count - 1].logit)) == 0) return;
    float logit[16];
    store(logit, logits);
    for (int lane = 0; lane < 16 && token + lane < row.count; ++lane) {
      if (kept == count && !(logit[lane] > to[count - 1].logit)) continue;
      insert(to, kept, count, {logit[lane], 0.0f, static_cast<int32_t>(token) + lane});
      kept = std::min(kept + 1, count);
    }
  });
}

}  // namespace

extern const SamplingKernels FIRSTLIGHT_TABLE(sampling, FIRSTLIGHT_LEVEL);
const SamplingKernels FIRSTLIGHT_TABLE(sampling, FIRSTLIGHT_LEVEL) = {largest, first_at_least, mass,
                                                                      collect, likeliest};

}  // namespace firstlight
