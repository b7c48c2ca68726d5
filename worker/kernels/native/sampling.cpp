// The operators `choose` and `log_probabilities`: see worker/kernels/sampling.py for what they do.
//
// A row's tokens are never sorted as a whole. Passes over it find the largest logit, the sum of all
// weights and, in bands from the largest down, candidates, until they hold what the draw can reach.
// In the band that it falls into, halves are set apart by selection until few are left to be sorted.
#include "sampling.h"

#include <ATen/ATen.h>

#include <algorithm>
#include <cmath>
#include <iterator>
#include <limits>
#include <vector>

#include "operators.h"
#include "threads.h"

namespace firstlight {
namespace {

constexpr int64_t kNotFinite = -1;
constexpr int64_t kNothingAllowed = -2;
constexpr double kInfinity = std::numeric_limits<double>::infinity();
constexpr double kLog2E = 1.4426950408889634;
// How far below the largest logit bands end, after temperature.
constexpr double kBands[] = {1.5, 3.0, 4.5, 6.0, 7.0, 8.0, 9.0, 10.0, 12.0, 15.0, 20.0, kInfinity};
constexpr int64_t kFew = 64;  // candidates that are sorted
constexpr int64_t kMostLikeliest = 1024;

struct Draw {
  double temperature, top_k, top_p, min_p, uniform;
  double repetition, presence, frequency;
};
constexpr int64_t kNumbers = sizeof(Draw) / sizeof(double);

// Tokens of all rows, one row's behind the other's, with a number each.
template <typename Number>
struct Ragged {
  const int32_t* starts;
  const int32_t* tokens;
  const Number* numbers;
};

void check(const at::Tensor& tensor, const char* name, at::ScalarType type, int64_t dims) {
  TORCH_CHECK(tensor.device().is_cpu() && tensor.scalar_type() == type && tensor.dim() == dims &&
                  tensor.is_contiguous(),
              name, " must be a contiguous CPU tensor of ", type, " with ", dims, " dimensions");
}

template <typename Number>
Ragged<Number> checked(const at::Tensor& starts, const at::Tensor& tokens,
                       const at::Tensor& numbers, at::ScalarType type, int64_t rows,
                       int64_t vocabulary) {
  check(starts, "starts", at::kInt, 1);
  check(tokens, "tokens", at::kInt, 1);
  check(numbers, "numbers of tokens", type, 1);
  const Ragged<Number> ragged = {starts.const_data_ptr<int32_t>(), tokens.const_data_ptr<int32_t>(),
                                 numbers.const_data_ptr<Number>()};
  const int64_t count = tokens.size(0);
  TORCH_CHECK(starts.size(0) == rows + 1 && numbers.size(0) == count && ragged.starts[0] == 0 &&
                  ragged.starts[rows] == count &&
                  std::is_sorted(ragged.starts, ragged.starts + rows + 1),
              "starts must divide the tokens among the rows");
  TORCH_CHECK(std::all_of(ragged.tokens, ragged.tokens + count,
                          [&](int32_t token) { return token >= 0 && token < vocabulary; }),
              "a token is not below ", vocabulary);
  return ragged;
}

// Logits of one row that are other numbers as long as this exists.
class Adjusted {
 public:
  Adjusted(float* logits, std::vector<Candidate>& before) : logits_(logits), before_(before) {
    before_.clear();
  }
  Adjusted(const Adjusted&) = delete;
  ~Adjusted() {
    for (; !before_.empty(); before_.pop_back()) {
      logits_[before_.back().token] = before_.back().logit;
    }
  }

  void add(const Ragged<float>& bias, int64_t row) {
    for (int32_t i = bias.starts[row]; i < bias.starts[row + 1]; ++i) {
      set(bias.tokens[i], logits_[bias.tokens[i]] + bias.numbers[i]);
    }
  }

  void penalise(const Ragged<int32_t>& occurred, int64_t row, const Draw& draw) {
    for (int32_t i = occurred.starts[row]; i < occurred.starts[row + 1]; ++i) {
      const int32_t token = occurred.tokens[i], count = occurred.numbers[i];
      double logit = logits_[token];
      logit = logit > 0.0 ? logit / draw.repetition : logit * draw.repetition;
      logit = logit - draw.frequency * count - draw.presence * (count > 0);
      set(token, static_cast<float>(logit));
    }
  }

 private:
  void set(int32_t token, float logit) {
    before_.push_back({logits_[token], 0.0f, token});
    logits_[token] = logit;
  }

  float* logits_;
  std::vector<Candidate>& before_;
};

bool is_likelier(const Candidate& a, const Candidate& b) {
  return a.logit > b.logit || (a.logit == b.logit && a.token < b.token);
}

double mass_of(const Candidate* first, const Candidate* last) {
  double mass = 0.0;
  for (; first != last; ++first) mass += first->weight;
  return mass;
}

// Bands of candidates, each likelier than all that come after it.
struct Candidates {
  Candidate* first;
  Candidate* last;
  Candidate* ends[std::size(kBands)];
  int num_bands;
};

// From the largest logit down, until there are `most` or they hold more than `enough`, or are less
// likely than `least` times the first.
Candidates collect(const LogitRow& row, Weighing weighing, double temperature, int64_t most,
                   double enough, double least, Candidate* to) {
  Candidates found = {to, to, {}, 0};
  double mass = 0.0;
  float below = std::numeric_limits<float>::infinity();
  for (double band : kBands) {
    const double lowest = std::numeric_limits<float>::lowest();
    const float from = std::max(lowest, weighing.largest - band * temperature);
    Candidate* const start = found.last;
    found.last += sampling_kernels().collect(row, weighing, from, below, start);
    found.ends[found.num_bands++] = found.last;
    mass += mass_of(start, found.last);
    below = from;
    if (found.last - to >= most || mass > enough || std::exp(-band) < 0.99 * least) break;
  }
  return found;
}

// Keeps the `most` likeliest; the last band is the one that has more.
void cut_number(Candidates& from, int64_t most) {
  if (from.last - from.first <= most) return;
  Candidate* const start = from.num_bands > 1 ? from.ends[from.num_bands - 2] : from.first;
  from.last = from.first + most;
  std::nth_element(start, from.last, from.ends[from.num_bands - 1], is_likelier);
}

// The candidate with which the sum of weights, the likeliest first, exceeds `mass`; the last where
// none does. Afterwards those likelier than it stand before it, and bands are as they were.
Candidate* crossing(const Candidates& from, double mass) {
  Candidate* first = from.first;
  Candidate* last = from.last;
  for (int band = 0; band < from.num_bands && from.ends[band] < from.last; ++band) {
    const double here = mass_of(first, from.ends[band]);
    if (here > mass) {
      last = from.ends[band];
      break;
    }
    mass -= here;
    first = from.ends[band];
  }
  while (last - first > kFew) {
    Candidate* middle = first + (last - first) / 2;
    std::nth_element(first, middle, last, is_likelier);
    const double half = mass_of(first, middle);
    if (half > mass) {
      last = middle;
    } else {
      mass -= half;
      first = middle;
    }
  }
  std::sort(first, last, is_likelier);
  for (; first + 1 != last; ++first) {
    mass -= first->weight;
    if (mass < 0.0) break;
  }
  return first;
}

int64_t draw_from(const LogitRow& row, float largest, const Draw& draw,
                  std::vector<Candidate>& candidates) {
  // Neither is 0 nor infinite: 0 times infinity would be NaN.
  const double scale = std::clamp(kLog2E / draw.temperature, 1e-30, 1e30);
  const Weighing weighing = {largest, static_cast<float>(scale)};
  const bool cuts_number = draw.top_k > 0.0 && draw.top_k < static_cast<double>(row.count);
  const int64_t most = cuts_number ? static_cast<int64_t>(draw.top_k) : row.count;
  const bool cuts_mass = draw.top_p < 1.0;
  double mass = cuts_number ? kInfinity : sampling_kernels().mass(row, weighing);
  const double enough = cuts_mass          ? draw.top_p * mass
                        : draw.min_p > 0.0 ? kInfinity
                                           : draw.uniform * mass;

  if (candidates.size() < static_cast<size_t>(row.count)) candidates.resize(row.count);
  const double least = cuts_number ? 0.0 : draw.min_p;
  Candidates kept =
      collect(row, weighing, draw.temperature, most, enough, least, candidates.data());
  if (cuts_number) {
    cut_number(kept, most);
    mass = mass_of(kept.first, kept.last);
  }
  if (cuts_mass) kept.last = crossing(kept, std::nextafter(draw.top_p * mass, 0.0)) + 1;
  if (draw.min_p > 0.0) {
    kept.last = std::partition(kept.first, kept.last, [&](const Candidate& candidate) {
      return candidate.weight >= draw.min_p;
    });
  }
  if (cuts_mass || draw.min_p > 0.0) mass = mass_of(kept.first, kept.last);
  return crossing(kept, draw.uniform * mass)->token;
}

int64_t choose_one(const LogitRow& row, const Draw& draw, std::vector<Candidate>& candidates) {
  const float largest = sampling_kernels().largest(row);
  if (std::isnan(largest) || largest == kInfinity) return kNotFinite;
  if (largest == -kInfinity) return kNothingAllowed;
  if (draw.temperature == 0.0) return sampling_kernels().first_at_least(row, largest);
  return draw_from(row, largest, draw, candidates);
}

}  // namespace

at::Tensor choose(const at::Tensor& logits, const at::Tensor& numbers,
                  const at::Tensor& bias_starts, const at::Tensor& bias_tokens,
                  const at::Tensor& bias_values, const at::Tensor& occurred_starts,
                  const at::Tensor& occurred_tokens, const at::Tensor& occurred_counts,
                  const std::optional<at::Tensor>& masks, const at::Tensor& mask_rows) {
  check(logits, "logits", at::kFloat, 2);
  check(numbers, "numbers", at::kDouble, 2);
  check(mask_rows, "mask_rows", at::kInt, 1);
  const int64_t rows = logits.size(0), vocabulary = logits.size(1), words = (vocabulary + 31) / 32;
  TORCH_CHECK(numbers.size(0) == rows && numbers.size(1) == kNumbers && mask_rows.size(0) == rows,
              "every row of logits needs ", kNumbers, " numbers and a mask's row");
  const auto bias =
      checked<float>(bias_starts, bias_tokens, bias_values, at::kFloat, rows, vocabulary);
  const auto occurred = checked<int32_t>(occurred_starts, occurred_tokens, occurred_counts,
                                         at::kInt, rows, vocabulary);
  int64_t num_masks = 0;
  const int32_t* mask_words = nullptr;
  if (masks.has_value()) {
    check(*masks, "masks", at::kInt, 2);
    TORCH_CHECK(masks->size(1) == words, "masks must have ", words, " words");
    num_masks = masks->size(0);
    mask_words = masks->const_data_ptr<int32_t>();
  }
  const int32_t* mask_of = mask_rows.const_data_ptr<int32_t>();
  TORCH_CHECK(std::all_of(mask_of, mask_of + rows, [&](int32_t mask) { return mask < num_masks; }),
              "a mask's row is not below ", num_masks);

  const auto* draws = reinterpret_cast<const Draw*>(numbers.const_data_ptr<double>());
  float* const all = logits.mutable_data_ptr<float>();  // adjusted for a while
  at::Tensor chosen = at::empty({rows}, at::kLong);
  int64_t* const to = chosen.mutable_data_ptr<int64_t>();
  in_parallel(rows, [&](int64_t i) {
    static thread_local std::vector<Candidate> before, candidates;
    float* const row = all + i * vocabulary;
    Adjusted adjusted(row, before);
    adjusted.add(bias, i);
    adjusted.penalise(occurred, i, draws[i]);
    const int32_t* allowed = mask_of[i] < 0 ? nullptr : mask_words + mask_of[i] * words;
    to[i] = choose_one({row, vocabulary, reinterpret_cast<const uint32_t*>(allowed)}, draws[i],
                       candidates);
  });
  return chosen;
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> log_probabilities(const at::Tensor& logits,
                                                                 const at::Tensor& rows,
                                                                 const at::Tensor& tokens,
                                                                 int64_t count) {
  check(logits, "logits", at::kFloat, 2);
  check(rows, "rows", at::kLong, 1);
  check(tokens, "tokens", at::kLong, 1);
  const int64_t asked = rows.size(0), vocabulary = logits.size(1);
  const int64_t* const row_of = rows.const_data_ptr<int64_t>();
  const int64_t* const token_of = tokens.const_data_ptr<int64_t>();
  TORCH_CHECK(tokens.size(0) == asked && count >= 0 && count <= std::min(vocabulary, kMostLikeliest),
              "a token a row, and not more likeliest than there are");
  for (int64_t i = 0; i < asked; ++i) {
    TORCH_CHECK(row_of[i] >= 0 && row_of[i] < logits.size(0) && token_of[i] >= 0 &&
                    token_of[i] < vocabulary,
                "a row or a token is none of the logits'");
  }
  at::Tensor values = at::empty({asked}, logits.options());
  at::Tensor top_tokens = at::empty({asked, count}, at::kInt);
  at::Tensor top_values = at::empty({asked, count}, logits.options());
  float* const value = values.mutable_data_ptr<float>();
  int32_t* const top_token = top_tokens.mutable_data_ptr<int32_t>();
  float* const top_value = top_values.mutable_data_ptr<float>();
  const float* const all = logits.const_data_ptr<float>();
  in_parallel(asked, [&](int64_t i) {
    const SamplingKernels& kernels = sampling_kernels();
    std::vector<Candidate> likeliest(count);
    const LogitRow row = {all + row_of[i] * vocabulary, vocabulary, nullptr};
    const float largest = kernels.largest(row);
    const double mass = kernels.mass(row, {largest, static_cast<float>(kLog2E)});
    const double whole = largest + std::log(mass);
    value[i] = static_cast<float>(row.logits[token_of[i]] - whole);
    if (count > 0) kernels.likeliest(row, count, likeliest.data());
    for (int64_t place = 0; place < count; ++place) {
      top_token[i * count + place] = likeliest[place].token;
      top_value[i * count + place] = static_cast<float>(likeliest[place].logit - whole);
    }
  });
  return {values, top_tokens, top_values};
}

}  // namespace firstlight
