#include "program.h"

#include <utility>

namespace firstlight {

std::optional<at::Tensor> Program::Run::result(int64_t number) const {
  if (number < 0) return std::nullopt;
  return results[number];
}

int64_t Program::linear(int64_t x, at::Tensor packed, int64_t kind, int64_t outputs,
                        std::optional<at::Tensor> scale, std::optional<at::Tensor> bias,
                        int64_t prologue, std::optional<at::Tensor> norm, double epsilon,
                        int64_t gate, int64_t residual) {
  products_.push_back({packed, outputs, static_cast<Gate>(gate)});
  const size_t next = products_.size();
  return add({x, residual}, [=, this](Run& run) {
    const Product* next_product = next < products_.size() ? &products_[next] : nullptr;
    return linear_before(next_product, run.results[x], packed, kind, outputs, scale, bias, prologue,
                         norm, epsilon, gate, run.result(residual));
  });
}

int64_t Program::rms_norm(int64_t x, at::Tensor weight, double epsilon, int64_t residual) {
  return add({x, residual}, [=](Run& run) {
    return firstlight::rms_norm(run.results[x], weight, epsilon, run.result(residual));
  });
}

int64_t Program::attend(int64_t x, int64_t layer, int64_t rope,
                        std::optional<at::Tensor> query_norm, std::optional<at::Tensor> key_norm,
                        double epsilon, double scale, double softcap, int64_t window) {
  return add({x}, [=](Run& run) {
    return firstlight::attend(run.results[x], run.pools.at(layer), run.tables, run.rows, run.starts,
                              run.ends, run.ropes.at(rope), query_norm, key_norm, epsilon, scale,
                              softcap, window, run.heads, run.kv_heads, run.head_dim,
                              run.block_size, run.is_int8);
  });
}

at::Tensor Program::run(const at::Tensor& x, const std::vector<at::Tensor>& pools,
                        const at::Tensor& tables, const at::Tensor& rows, const at::Tensor& starts,
                        const at::Tensor& ends, const std::vector<at::Tensor>& ropes, int64_t heads,
                        int64_t kv_heads, int64_t head_dim, int64_t block_size,
                        bool is_int8) const {
  TORCH_CHECK(!operations_.empty(), "the program has no operations");
  Run run = {pools,    tables,   rows,       starts,  ends, ropes, heads,
             kv_heads, head_dim, block_size, is_int8, {x}};
  run.results.reserve(operations_.size() + 1);
  for (const Operation& operation : operations_) {
    run.results.push_back(operation.compute(run));
    for (int64_t number : operation.last_uses) run.results[number].reset();
  }
  return run.results.back();
}

int64_t Program::add(std::vector<int64_t> uses, std::function<at::Tensor(Run&)> compute) {
  const int64_t number = static_cast<int64_t>(operations_.size());
  operations_.push_back({std::move(compute), {}});
  last_use_.push_back(-1);
  for (int64_t result : uses) {
    if (result < 0) continue;
    TORCH_CHECK(result <= number, "operation ", number, " uses result ", result);
    if (last_use_[result] == number) continue;
    if (last_use_[result] >= 0) std::erase(operations_[last_use_[result]].last_uses, result);
    operations_[number].last_uses.push_back(result);
    last_use_[result] = number;
  }
  return number + 1;
}

}  // namespace firstlight
