// The operators `round_int8` and `round_int4`: [outputs, inputs] of float32 or bfloat16 to codes.
#include "rounding.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <vector>

#include "operators.h"
#include "threads.h"

namespace firstlight {
namespace {

constexpr int64_t kRowsOfPiece = 16;
constexpr int64_t kGroupsOfPiece = 64 * kGroupsAtOnce;

void check(const at::Tensor& weight) {
  const at::ScalarType type = weight.scalar_type();
  TORCH_CHECK(weight.device().is_cpu() && weight.is_contiguous() && weight.dim() == 2 &&
                  weight.size(1) > 0 && (type == at::kFloat || type == at::kBFloat16),
              "weight must be a contiguous CPU tensor of float32 or bfloat16, [outputs, inputs]");
}

template <typename Number>
void round_rows(const at::Tensor& weight, int8_t* codes, float* scale) {
  const int64_t outputs = weight.size(0), inputs = weight.size(1);
  const Number* const numbers = weight.const_data_ptr<Number>();
  in_parallel(whole(outputs, kRowsOfPiece), [&](int64_t piece) {
    std::vector<float> row(whole(inputs, 16) * 16);
    const int64_t end = std::min(outputs, (piece + 1) * kRowsOfPiece);
    for (int64_t output = piece * kRowsOfPiece; output < end; ++output) {
      std::copy_n(numbers + output * inputs, inputs, row.begin());
      scale[output] = rounding_kernels().row_to_int8(row.data(), inputs, codes + output * inputs);
    }
  });
}

// The numbers of groups of all rows, one row's behind the other's, a group a lane. What a row lacks
// to whole groups is its last number again.
template <typename Number>
void round_groups(const at::Tensor& weight, const float* importance, uint8_t* codes, float* scale,
                  float* offset) {
  const int64_t inputs = weight.size(1), groups_of_row = whole(inputs, kGroup);
  const int64_t groups = weight.size(0) * groups_of_row;
  const Number* const numbers = weight.const_data_ptr<Number>();
  const auto round_block = [&](int64_t first) {
    float x[kGroup * kGroupsAtOnce] = {};
    float counts[kGroup * kGroupsAtOnce] = {};
    uint8_t coded[kGroup * kGroupsAtOnce];
    float scales[kGroupsAtOnce], offsets[kGroupsAtOnce];
    const int64_t count = std::min(kGroupsAtOnce, groups - first);
    int64_t starts[kGroupsAtOnce], sizes[kGroupsAtOnce];
    for (int64_t lane = 0; lane < count; ++lane) {
      const int64_t row = (first + lane) / groups_of_row, group = (first + lane) % groups_of_row;
      starts[lane] = row * inputs + group * kGroup;
      sizes[lane] = std::min<int64_t>(kGroup, inputs - group * kGroup);
      for (int64_t i = 0; i < kGroup; ++i) {
        x[i * kGroupsAtOnce + lane] = numbers[starts[lane] + std::min(i, sizes[lane] - 1)];
      }
      for (int64_t i = 0; importance != nullptr && i < kGroup; ++i) {
        counts[i * kGroupsAtOnce + lane] = importance[group * kGroup + i];
      }
    }
    rounding_kernels().groups_to_int4(x, importance == nullptr ? nullptr : counts, coded, scales,
                                      offsets);
    for (int64_t lane = 0; lane < count; ++lane) {
      for (int64_t i = 0; i < sizes[lane]; ++i) {
        codes[starts[lane] + i] = coded[i * kGroupsAtOnce + lane];
      }
    }
    std::copy_n(scales, count, scale + first);
    std::copy_n(offsets, count, offset + first);
  };
  in_parallel(whole(groups, kGroupsOfPiece), [&](int64_t piece) {
    const int64_t end = std::min(groups, (piece + 1) * kGroupsOfPiece);
    for (int64_t first = piece * kGroupsOfPiece; first < end; first += kGroupsAtOnce) {
      round_block(first);
    }
  });
}

}  // namespace

std::tuple<at::Tensor, at::Tensor> round_int8(const at::Tensor& weight) {
  check(weight);
  at::Tensor codes = at::empty(weight.sizes(), at::kChar);
  at::Tensor scale = at::empty({weight.size(0), 1}, at::kFloat);
  const auto round =
      weight.scalar_type() == at::kFloat ? round_rows<float> : round_rows<at::BFloat16>;
  round(weight, codes.mutable_data_ptr<int8_t>(), scale.mutable_data_ptr<float>());
  return {codes, scale};
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> round_int4(
    const at::Tensor& weight, const std::optional<at::Tensor>& importance) {
  check(weight);
  TORCH_CHECK(!importance.has_value() ||
                  (importance->device().is_cpu() && importance->is_contiguous() &&
                   importance->scalar_type() == at::kFloat &&
                   importance->numel() == whole(weight.size(1), kGroup) * kGroup),
              "importance must be a contiguous CPU tensor of float32 for the inputs of whole groups");
  at::Tensor codes = at::empty(weight.sizes(), at::kByte);
  at::Tensor scale = at::empty({weight.size(0), whole(weight.size(1), kGroup)}, at::kFloat);
  at::Tensor offset = at::empty_like(scale);
  const auto round =
      weight.scalar_type() == at::kFloat ? round_groups<float> : round_groups<at::BFloat16>;
  round(weight, importance.has_value() ? importance->const_data_ptr<float>() : nullptr,
        codes.mutable_data_ptr<uint8_t>(), scale.mutable_data_ptr<float>(),
        offset.mutable_data_ptr<float>());
  return {codes, scale, offset};
}

}  // namespace firstlight
