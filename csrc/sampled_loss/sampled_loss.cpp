// The operator sampled_loss: checks of arguments and allocation. It computes the loss over in-batch and sampled
// negatives together with its gradients. Specification: gru4rec_fast/ops/sampled_loss.py and row_losses.py.
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

// Calls the CPU functions. bfloat16 operands are converted to float; the products with Precision::bf16 round them back
// to the same numbers.
template <typename T>
void run_on_cpu(const LossTensors& args, const LossOptions<double>& options, LossResults& results) {
  const bool bf16 = args.hidden.scalar_type() == at::kBFloat16;
  const Tensor hidden = args.hidden.to(results.hidden.scalar_type()), rows = args.rows.to(results.rows.scalar_type());
  const SampledLoss<T> problem{args.m(),
                               args.n(),
                               /*width=*/hidden.size(1),
                               args.in_batch,
                               hidden.const_data_ptr<T>(),
                               rows.const_data_ptr<T>(),
                               data_or_null<T>(args.bias),
                               data_or_null<T>(args.log_q),
                               data_or_null<T>(args.count),
                               data_or_null<bool>(args.live),
                               data_or_null<int64_t>(args.ids),
                               options.as<T>(),
                               bf16 ? Precision::bf16 : Precision::full};
  *results.loss.mutable_data_ptr<T>() =
      loss_and_gradients(problem, options.scale,
                         LossGradients<T>{results.hidden.mutable_data_ptr<T>(), results.rows.mutable_data_ptr<T>(),
                                          results.bias.mutable_data_ptr<T>()});
}

// The operator. sampled_loss/arguments.h explains the tensors.
template <Kernels kernels>
std::tuple<Tensor, Tensor, Tensor, Tensor> sampled_loss(const Tensor& hidden, const Tensor& rows,
                                                        const OptionalTensor& bias, const OptionalTensor& live,
                                                        const OptionalTensor& log_q, const OptionalTensor& ids,
                                                        const OptionalTensor& count, std::string_view loss,
                                                        bool in_batch, double batch_size, double elu_param,
                                                        double bpreg, double label_smoothing) {
  TORCH_CHECK_VALUE(
      hidden.dim() == 2 && rows.dim() == 2 && rows.size(0) >= hidden.size(0) && rows.size(0) < int64_t{1} << 31,
      "hidden must be [M, H] and rows [M + N, H] with M + N < 2**31, not ", hidden.sizes(), " and ", rows.sizes());
  TORCH_CHECK_VALUE(elu_param >= 0, "elu_param=", elu_param, ": must not be negative; 0 means no ELU");
  const auto dtype = hidden.scalar_type();
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble || dtype == at::kBFloat16,
                    "hidden must be float32, float64 or bfloat16, not ", dtype,
                    "; convert, or pass impl=\"reference\"");
  // The dtype of sums, results, bias, log_q and count.
  const auto sum_dtype = dtype == at::kBFloat16 ? at::kFloat : dtype;
  const at::Device device = hidden.device();
  // entries: M + N, the number of targets and negatives.
  const int64_t m = hidden.size(0), entries = rows.size(0), width = hidden.size(1);
  const LossTensors args{hidden.contiguous(),
                         contiguous(rows, "rows", {entries, width}, dtype, device),
                         contiguous(bias, "bias", {entries}, sum_dtype, device),
                         contiguous(live, "live", {m}, at::kBool, device),
                         contiguous(log_q, "log_q", {entries}, sum_dtype, device),
                         contiguous(ids, "ids", {entries}, at::kLong, device),
                         contiguous(count, "count", {entries - m}, sum_dtype, device),
                         in_batch};
  const LossOptions<double> options{loss_named(loss), elu_param, bpreg, label_smoothing, /*scale=*/1 / batch_size};
  const auto sum_options = hidden.options().dtype(sum_dtype);
  // The loss, and its gradients with respect to hidden, rows and bias.
  LossResults results{at::empty({}, sum_options), at::empty({m, width}, sum_options),
                      at::empty({entries, width}, sum_options), at::empty({entries}, sum_options)};
  if constexpr (kernels == Kernels::cuda) {
    cuda::sampled_loss(args, options, results);
  } else {
    AT_DISPATCH_FLOATING_TYPES(sum_dtype, "sampled_loss", [&] { run_on_cpu<scalar_t>(args, options, results); });
  }
  return {results.loss, results.hidden, results.rows, results.bias};
}

GRF_REGISTER(sampled_loss)

}  // namespace
}  // namespace grf
