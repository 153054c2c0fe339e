// The operator of the loss over in-batch and sampled negatives with its gradients. Specification:
// gru4rec_fast/ops/sampled_loss.py and sampled_loss_gradients.py.
#include "sampled_loss/sampled_loss.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/empty.h>

#include <tuple>

#include "common/operator.h"
#include "sampled_loss/arguments.h"
#include "sampled_loss/cpu.h"

namespace grf {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

RankingLoss loss_named(std::string_view name) {
  if (name == "cross-entropy") return RankingLoss::cross_entropy;
  if (name == "bpr-max") return RankingLoss::bpr_max;
  if (name == "top1") return RankingLoss::top1;
  if (name == "top1-max") return RankingLoss::top1_max;
  TORCH_CHECK_VALUE(name == "bpr", "loss=", name, ": choose one of cross-entropy, bpr-max, top1, top1-max, bpr");
  return RankingLoss::bpr;
}

namespace {

// bfloat16 operands go to the products as floats, which Precision::bf16 rounds to what they were.
template <typename T>
void run_on_cpu(const LossTensors& given, const LossOptions<double>& options, LossResults& to) {
  const bool bf16 = given.hidden.scalar_type() == at::kBFloat16;
  const Tensor hidden = given.hidden.to(to.hidden.scalar_type()), rows = given.rows.to(to.rows.scalar_type());
  const SampledLoss<T> problem{given.m(),
                               given.n(),
                               hidden.size(1),
                               given.in_batch,
                               hidden.const_data_ptr<T>(),
                               rows.const_data_ptr<T>(),
                               data_or_null<T>(given.bias),
                               data_or_null<T>(given.log_q),
                               data_or_null<T>(given.count),
                               data_or_null<bool>(given.live),
                               data_or_null<int64_t>(given.ids),
                               options.as<T>(),
                               bf16 ? Precision::bf16 : Precision::full};
  *to.loss.mutable_data_ptr<T>() = loss_and_gradients(
      problem, options.scale,
      LossGradients<T>{to.hidden.mutable_data_ptr<T>(), to.rows.mutable_data_ptr<T>(), to.bias.mutable_data_ptr<T>()});
}

template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> sampled_loss(const Tensor& hidden, const Tensor& rows,
                                                        const OptionalTensor& bias, const OptionalTensor& live,
                                                        const OptionalTensor& log_q, const OptionalTensor& ids,
                                                        const OptionalTensor& count, std::string_view loss,
                                                        bool in_batch, double batch_size, double elu_param,
                                                        double bpreg, double label_smoothing) {
  TORCH_CHECK_VALUE(hidden.dim() == 2 && rows.dim() == 2 && rows.size(0) >= hidden.size(0),
                    "hidden must be [M, H] and rows [M + N, H], not ", hidden.sizes(), " and ", rows.sizes());
  TORCH_CHECK_VALUE(elu_param >= 0, "elu_param=", elu_param, ": must not be negative");
  const auto dtype = hidden.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "hidden must be float32, float64 or bfloat16, not ", dtype,
                    "; convert, or pass impl=\"reference\"");
  const auto sums = dtype == at::kBFloat16 ? at::kFloat : dtype;
  const at::Device device = hidden.device();
  const int64_t m = hidden.size(0), columns = rows.size(0), width = hidden.size(1);
  const LossTensors given{hidden.contiguous(),
                          contiguous(rows, "rows", {columns, width}, dtype, device),
                          contiguous(bias, "bias", {columns}, sums, device),
                          contiguous(live, "live", {m}, at::kBool, device),
                          contiguous(log_q, "log_q", {columns}, sums, device),
                          contiguous(ids, "ids", {columns}, at::kLong, device),
                          contiguous(count, "count", {columns - m}, sums, device),
                          in_batch};
  const LossOptions<double> options{loss_named(loss), elu_param, bpreg, label_smoothing, 1 / batch_size};
  const auto results = hidden.options().dtype(sums);
  LossResults to{at::empty({}, results), at::empty({m, width}, results), at::empty({columns, width}, results),
                 at::empty({columns}, results)};
  if constexpr (kernels == Kernels::cuda) {
    cuda::sampled_loss(given, options, to);
  } else {
    AT_DISPATCH_FLOATING_TYPES(sums, "sampled_loss", [&] { run_on_cpu<scalar_t>(given, options, to); });
  }
  return {to.loss, to.hidden, to.rows, to.bias};
}

template <Kernels kernels>
void implement(torch::Library& m) {
  m.impl("sampled_loss", &sampled_loss<kernels>);
}
GRF_REGISTER(implement)

}  // namespace
}  // namespace grf
