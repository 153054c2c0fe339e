#include "cuda_emulator/single_launch.h"

#include "sampled_loss/sampled_loss.h"

namespace grf {
namespace {

template <typename T>
T* find_tensor(const Addresses& tensors, const char* name) {
  const auto entry = tensors.find(name);
  return entry == tensors.end() ? nullptr : reinterpret_cast<T*>(entry->second);
}

template <typename Operand>
void make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, const Addresses& tensors) {
  cuda::ScoreRows<Operand> rows{};
  rows.options = {RankingLoss::cross_entropy, 0, 0, 0, 1};
  rows.m = rows.n_rows = m;
  rows.n = n;
  rows.width = width;
  rows.stride = stride;
  rows.hidden = find_tensor<Operand>(tensors, "hidden");
  rows.rows = find_tensor<Operand>(tensors, "rows");
  rows.scores = find_tensor<float>(tensors, "scores");
  rows.grads = find_tensor<Operand>(tensors, "grads");
  rows.losses = find_tensor<float>(tensors, "losses");
  rows.grad_hidden = find_tensor<float>(tensors, "grad_hidden");
  rows.grad_rows = find_tensor<float>(tensors, "grad_rows");
  rows.grad_bias = find_tensor<float>(tensors, "grad_bias");
  cuda::make_losses(rows, nullptr);
}

}  // namespace

void launch_make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, bool bfloat16, const Addresses& tensors) {
  (bfloat16 ? make_losses<uint16_t> : make_losses<float>)(m, n, width, stride, tensors);
}

void launch_make_score_offsets(int64_t m, int64_t n, const Addresses& tensors) {
  cuda::ScoreOffsets<float> columns{};
  columns.m = m;
  columns.n = n;
  columns.bias = find_tensor<float>(tensors, "bias");
  columns.offsets = find_tensor<float>(tensors, "offsets");
  cuda::make_score_offsets(columns, nullptr);
}

}  // namespace grf
