// Launches of single kernels of sampled_loss, for tests of large tensors.
#include "cuda_emulator/single_launch.h"

#include "sampled_loss/sampled_loss.h"

namespace grf {
namespace {

// Returns the address of a tensor, or a null pointer if it is not listed.
template <typename T>
T* find_tensor(const TensorAddresses& addresses, const char* name) {
  const auto found = addresses.find(name);
  return found == addresses.end() ? nullptr : reinterpret_cast<T*>(found->second);
}

// Operand is float, or uint16_t for the bits of bfloat16.
template <typename Operand>
void make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, const TensorAddresses& addresses) {
  cuda::ScoreRows<Operand> arguments{};
  arguments.options = {RankingLoss::cross_entropy, /*elu=*/0, /*bpreg=*/0, /*smoothing=*/0, /*scale=*/1};
  arguments.m = arguments.n_rows = m;
  arguments.n = n;
  arguments.width = width;
  arguments.stride = stride;
  arguments.hidden = find_tensor<Operand>(addresses, "hidden");
  arguments.rows = find_tensor<Operand>(addresses, "rows");
  arguments.scores = find_tensor<float>(addresses, "scores");
  arguments.grads = find_tensor<Operand>(addresses, "grads");
  arguments.losses = find_tensor<float>(addresses, "losses");
  arguments.grad_hidden = find_tensor<float>(addresses, "grad_hidden");
  arguments.grad_rows = find_tensor<float>(addresses, "grad_rows");
  arguments.grad_bias = find_tensor<float>(addresses, "grad_bias");
  cuda::make_losses(arguments, /*stream=*/nullptr);
}

}  // namespace

void launch_make_losses(int64_t m, int64_t n, int64_t width, int64_t stride, bool is_bfloat16,
                        const TensorAddresses& addresses) {
  (is_bfloat16 ? make_losses<uint16_t> : make_losses<float>)(m, n, width, stride, addresses);
}

void launch_make_score_offsets(int64_t m, int64_t n, const TensorAddresses& addresses) {
  cuda::ScoreOffsets<float> arguments{};
  arguments.m = m;
  arguments.n = n;
  arguments.bias = find_tensor<float>(addresses, "bias");
  arguments.offsets = find_tensor<float>(addresses, "offsets");
  cuda::make_score_offsets(arguments, /*stream=*/nullptr);
}

}  // namespace grf
