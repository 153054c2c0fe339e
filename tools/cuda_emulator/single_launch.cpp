#include "cuda_emulator/single_launch.h"

#include "sampled_loss/sampled_loss.h"

namespace grf {
namespace {

template <typename T>
T* at(const Addresses& tensors, const char* name) {
  const auto found = tensors.find(name);
  return found == tensors.end() ? nullptr : reinterpret_cast<T*>(found->second);
}

template <typename Operand>
void make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, const Addresses& tensors) {
  cuda::ScoreRows<Operand> rows{};
  rows.options = {RankingLoss::cross_entropy, 0, 0, 0, 1};
  rows.m = rows.n_rows = m;
  rows.n = n;
  rows.width = width;
  rows.stride = stride;
  rows.hidden = at<Operand>(tensors, "hidden");
  rows.rows = at<Operand>(tensors, "rows");
  rows.scores = at<float>(tensors, "scores");
  rows.grads = at<Operand>(tensors, "grads");
  rows.losses = at<float>(tensors, "losses");
  rows.grad_hidden = at<float>(tensors, "grad_hidden");
  rows.grad_rows = at<float>(tensors, "grad_rows");
  rows.grad_bias = at<float>(tensors, "grad_bias");
  cuda::make_losses(rows, nullptr);
}

}  // namespace

void make_losses_alone(int64_t m, int64_t n, int64_t width, int64_t stride, bool bfloat16, const Addresses& tensors) {
  (bfloat16 ? make_losses<uint16_t> : make_losses<float>)(m, n, width, stride, tensors);
}

void make_score_offsets_alone(int64_t m, int64_t n, const Addresses& tensors) {
  cuda::ScoreOffsets<float> columns{};
  columns.m = m;
  columns.n = n;
  columns.bias = at<float>(tensors, "bias");
  columns.offsets = at<float>(tensors, "offsets");
  cuda::make_score_offsets(columns, nullptr);
}

}  // namespace grf
