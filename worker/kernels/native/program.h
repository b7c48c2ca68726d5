// All operations of a model's layers, done by one call.
#pragma once

#include <ATen/ATen.h>
#include <torch/custom_class.h>

#include <cstdint>
#include <functional>
#include <optional>
#include <vector>

#include "operators.h"

namespace firstlight {

// Operations in order, each on the result of an earlier one. Results are counted from 0, which is
// what the program is given; -1 is none. Weights are kept, everything else comes with each run: any
// number of tokens, any KV cache of the same shape.
class Program : public torch::CustomClassHolder {
 public:
  // Each adds an operation, of the operators' arguments (operators.h), and gives its result's number.
  int64_t linear(int64_t x, at::Tensor packed, int64_t kind, int64_t outputs,
                 std::optional<at::Tensor> scale, std::optional<at::Tensor> bias, int64_t prologue,
                 std::optional<at::Tensor> norm, double epsilon, int64_t gate, int64_t residual);
  int64_t rms_norm(int64_t x, at::Tensor weight, double epsilon, int64_t residual);
  // `layer` is the pool's number, `rope` that of the angles.
  int64_t attend(int64_t x, int64_t layer, int64_t rope, std::optional<at::Tensor> query_norm,
                 std::optional<at::Tensor> key_norm, double epsilon, double scale, double softcap,
                 int64_t window);

  // The result of the last operation.
  at::Tensor run(const at::Tensor& x, const std::vector<at::Tensor>& pools,
                 const at::Tensor& tables, const at::Tensor& rows, const at::Tensor& starts,
                 const at::Tensor& ends, const std::vector<at::Tensor>& ropes, int64_t heads,
                 int64_t kv_heads, int64_t head_dim, int64_t block_size, bool is_int8) const;

 private:
  // What a run brings.
  struct Run {
    const std::vector<at::Tensor>& pools;
    const at::Tensor &tables, &rows, &starts, &ends;
    const std::vector<at::Tensor>& ropes;
    int64_t heads, kv_heads, head_dim, block_size;
    bool is_int8;
    std::vector<at::Tensor> results;

    std::optional<at::Tensor> result(int64_t number) const;
  };
  struct Operation {
    std::function<at::Tensor(Run&)> compute;
    std::vector<int64_t> last_uses;  // results that nothing after it needs
  };

  int64_t add(std::vector<int64_t> uses, std::function<at::Tensor(Run&)> compute);

  std::vector<Operation> operations_;
  std::vector<Product> products_;         // in order
  std::vector<int64_t> last_use_ = {-1};  // of each result: the operation's number
};

}  // namespace firstlight
