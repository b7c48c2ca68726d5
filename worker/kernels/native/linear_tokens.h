// What becomes of tokens before they are multiplied, norm and codes, and where gates join halves.
#pragma once

#include <algorithm>
#include <cmath>

#include "linear.h"
#include "linear_groups.h"
#include "simd.h"

namespace firstlight {
namespace {

Floats sigmoid(Floats x) {
  const Floats power = minimum(all(126.0f), multiply(x, all(-1.44269504f)));
  return divide(all(1.0f), add(all(1.0f), power_of_two(maximum(all(-126.0f), power))));
}

// x * Phi(x) by its approximation through tanh, which is a sigmoid of twice the argument.
Floats gelu(Floats x) {
  const Floats cube = multiply(multiply(x, x), x);
  const Floats inner = multiply_add(all(0.044715f), cube, x);
  return multiply(x, sigmoid(multiply(all(1.5957691216057308f), inner)));
}

Floats silu(Floats x) { return multiply(x, sigmoid(x)); }

Floats joined(Gate gate, Floats gates, Floats up) {
  return multiply(gate == Gate::kSilu ? silu(gates) : gelu(gates), up);
}

void join(Gate gate, const float* x, int64_t width, int64_t first, int64_t last, float* y) {
  for (int64_t token = first; token < last; ++token) {
    const float* gates = x + token * 2 * width;
    const float* up = gates + width;
    float* to = y + token * width;
    int64_t i = 0;
    for (; i + 16 <= width; i += 16) store(to + i, joined(gate, load(gates + i), load(up + i)));
    if (i < width) {
      float rest[32] = {};
      std::copy(gates + i, gates + width, rest);
      std::copy(up + i, up + width, rest + 16);
      store(rest, joined(gate, load(rest), load(rest + 16)));
      std::copy(rest, rest + (width - i), to + i);
    }
  }
}

float inverse_root_mean_square(const float* x, int64_t count, float epsilon) {
  Floats squares = all(0.0f);
  int64_t i = 0;
  for (; i + 16 <= count; i += 16) {
    const Floats numbers = load(x + i);
    squares = multiply_add(numbers, numbers, squares);
  }
  float sum = total(squares);
  for (; i < count; ++i) sum = std::fma(x[i], x[i], sum);
  return 1.0f / std::sqrt(sum / static_cast<float>(count) + epsilon);
}

// The numbers to be coded, filled up with zeros to whole groups: in place where nothing is to do.
const float* prepared(const Tokens& tokens, int64_t token, float* row) {
  const float* x = tokens.x + token * tokens.stride;
  const int64_t inputs = tokens.inputs, whole_inputs = tokens.groups * kGroup;
  if (tokens.prologue == Prologue::kNone) {
    if (inputs == whole_inputs) return x;
    std::copy(x, x + inputs, row);
  } else {
    const float factor = inverse_root_mean_square(x, inputs, tokens.epsilon);
    int64_t i = 0;
    for (; i + 16 <= inputs; i += 16) {
      store(row + i, multiply(multiply(load(x + i), all(factor)), load(tokens.norm + i)));
    }
    for (; i < inputs; ++i) row[i] = x[i] * factor * tokens.norm[i];
  }
  std::fill(row + inputs, row + whole_inputs, 0.0f);
  return row;
}

void encode_bf16(const Tokens& tokens, int64_t token, const float* numbers) {
  Bf16Code* codes = static_cast<Bf16Code*>(tokens.codes) + token * tokens.groups * kGroup;
  for (int64_t i = 0; i < tokens.groups * kGroup; i += 16) {
    write_bf16_codes(codes + i, load(numbers + i));
  }
}

void encode_int8(const Tokens& tokens, int64_t token, const float* numbers) {
  const int64_t groups = tokens.groups;
  int8_t* codes = static_cast<int8_t*>(tokens.codes) + token * groups * kGroup;
  for (int64_t group = 0; group < groups; ++group) {
    const Floats first = load(numbers + group * kGroup), second = load(numbers + group * kGroup + 16);
    const float most = largest(maximum(absolute(first), absolute(second)));
    const Floats inverse = all(most > 0 ? 127.0f / most : 0.0f);
    const Sums first_codes = to_whole(multiply(first, inverse));
    const Sums second_codes = to_whole(multiply(second, inverse));
    store_whole_bytes(codes + group * kGroup, first_codes);
    store_whole_bytes(codes + group * kGroup + 16, second_codes);
    const int64_t place = token * groups + group;
    tokens.scales[place] = most / 127.0f;
    const int32_t sum = total(add(first_codes, second_codes));
    tokens.surpluses[place] = -128 * sum;
    tokens.scaled_sums[place] = tokens.scales[place] * static_cast<float>(sum);
  }
}

void encode(Kind kind, const Tokens& tokens, int64_t first, int64_t last, float* row) {
  for (int64_t token = first; token < last; ++token) {
    const float* numbers = prepared(tokens, token, row);
    if (kind == Kind::kBf16) {
      encode_bf16(tokens, token, numbers);
    } else {
      encode_int8(tokens, token, numbers);
    }
  }
}

void normalise(const Tokens& tokens, int64_t first, int64_t last, const Outputs& outputs) {
  const int64_t inputs = tokens.inputs;
  for (int64_t token = first; token < last; ++token) {
    const float* x = tokens.x + token * tokens.stride;
    const float* residual =
        outputs.residual == nullptr ? nullptr : outputs.residual + token * inputs;
    float* y = outputs.y + token * inputs;
    const float factor = inverse_root_mean_square(x, inputs, tokens.epsilon);
    int64_t i = 0;
    for (; i + 16 <= inputs; i += 16) {
      Floats normed = multiply(multiply(load(x + i), all(factor)), load(tokens.norm + i));
      if (residual != nullptr) normed = add(load(residual + i), normed);
      store(y + i, normed);
    }
    for (; i < inputs; ++i) {
      const float normed = x[i] * factor * tokens.norm[i];
      y[i] = residual == nullptr ? normed : residual[i] + normed;
    }
  }
}

}  // namespace
}  // namespace firstlight
