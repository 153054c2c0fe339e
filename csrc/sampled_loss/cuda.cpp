// The loss over in-batch and sampled negatives with its gradients, on CUDA. Specification:
// gru4rec_fast/ops/sampled_loss.py and row_losses.py.
//
// The loop is over chunks of rows. For each chunk, a matrix product by torch computes the scores, one kernel computes
// the gradients of the scores, and two products and a column sum compute the gradients of `hidden`, `rows` (the item
// embeddings) and `bias`. The kernel writes the gradients over the scores, except for bfloat16, where scores are
// float32 and gradients bfloat16. Products of float32 use TF32 if torch's setting allows it.
#include <ATen/core/LegacyTypeDispatch.h>
#include <ATen/ops/addmm.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/sum.h>

#include <algorithm>
#include <type_traits>

#include "common/device.h"
#include "common/operator.h"
#include "sampled_loss/arguments.h"

namespace grf::cuda {
namespace {

using at::Tensor;

// Computes c = a b or, with `add`, c += a b. Sums in the dtype of c.
void multiply(Tensor& c, Tensor a, Tensor b, bool add) {
#ifdef GRF_EMULATED  // torch has no CPU product with another output dtype; converted operands give the same sums
  a = a.to(c.scalar_type());
  b = b.to(c.scalar_type());
#else
  if (a.scalar_type() != c.scalar_type()) {
    add ? at::addmm_out(c, c, a, b, c.scalar_type()) : at::mm_out(c, a, b, c.scalar_type());
    return;
  }
#endif
  add ? at::addmm_out(c, c, a, b) : at::mm_out(c, a, b);
}

// Returns bias - log_q [M + N], with -inf for the targets of dead rows (`live` is false). If that is the bias alone,
// returns `bias`, which may be undefined. Returns the given offsets, if there are any.
template <typename T>
Tensor score_offsets(const LossTensors& args, const at::TensorOptions& options, cudaStream_t stream) {
  if (args.offsets.defined()) return args.offsets;
  if (!args.log_q.defined() && !(args.in_batch && args.live.defined())) return args.bias;
  Tensor offsets = at::empty({args.rows.size(0)}, options);
  const ScoreOffsets<T> offset_args{args.m(),
                                    args.n(),
                                    args.in_batch,
                                    data_or_null<T>(args.bias),
                                    data_or_null<T>(args.log_q),
                                    data_or_null<bool>(args.live),
                                    offsets.mutable_data_ptr<T>()};
  make_score_offsets(offset_args, stream);
  return offsets;
}

// Returns the number of rows of a chunk. A chunk fits into kScoreBytes or has at most kMinScoreRows rows. All chunks
// have about the same size.
int64_t chunk_rows(int64_t m, int64_t row_bytes) {
  const int64_t max_rows = std::max(kScoreBytes / row_bytes, kMinScoreRows);
  const int64_t chunks = std::max((m + max_rows - 1) / max_rows, int64_t{1});
  return (m + chunks - 1) / chunks;
}

// Computes the results chunk by chunk. Operand is the type of `hidden` and `rows`, T the type of sums.
template <typename Operand, typename T = typename Stored<Operand>::Sum>
void run_in_chunks(const LossTensors& args, const LossOptions<T>& options, LossResults& results) {
  constexpr bool in_place = std::is_same_v<Operand, T>;
  const cudaStream_t stream = current_stream(args.hidden.device());
  const at::TensorOptions operand_options = args.hidden.options(), sum_options = results.hidden.options();
  const int64_t m = args.m(), n = args.n(), columns = args.columns();
  constexpr int64_t multiple = in_place ? 4 : 8;  // in elements; aligns rows to at least 16 bytes
  const int64_t stride = std::max((columns + multiple - 1) / multiple, int64_t{1}) * multiple;
  const int64_t chunk = chunk_rows(m, stride * static_cast<int64_t>(sizeof(T) + (in_place ? 0 : sizeof(Operand))));
  const Tensor offsets = score_offsets<T>(args, sum_options, stream);
  const bool returns_all_losses = results.loss.dim() == 1, has_bias = results.bias.defined();
  const int64_t width = args.rows.size(1);
  Tensor losses = returns_all_losses ? results.loss : at::empty({m}, sum_options),
         all_scores = at::empty({chunk, stride}, sum_options);
  const Tensor all_grads = in_place ? all_scores : at::empty({chunk, stride}, operand_options);
  const Tensor rows = args.column_entries(args.rows);
  Tensor grad_rows = args.column_entries(results.rows), grad_bias;
  if (has_bias) grad_bias = args.column_entries(results.bias);
  if (m == 0) grad_rows.zero_();
  if (m == 0 && has_bias) grad_bias.zero_();
  for (int64_t first = 0; first < m; first += chunk) {
    const int64_t n_rows = std::min(chunk, m - first);
    const Tensor h = args.hidden.narrow(0, first, n_rows);
    const Tensor grads = all_grads.narrow(0, 0, n_rows).narrow(1, 0, columns);
    Tensor scores = all_scores.narrow(0, 0, n_rows).narrow(1, 0, columns),
           grad_h = results.hidden.narrow(0, first, n_rows);
    multiply(scores, h.narrow(1, 0, width), rows.t(), /*add=*/false);
    make_losses<Operand>({options,
                          m,
                          n,
                          width,
                          args.in_batch,
                          first,
                          n_rows,
                          static_cast<const Operand*>(args.hidden.const_data_ptr()),
                          static_cast<const Operand*>(args.rows.const_data_ptr()),
                          data_or_null<T>(offsets),
                          data_or_null<T>(args.count),
                          data_or_null<bool>(args.live),
                          data_or_null<int64_t>(args.ids),
                          stride,
                          /*scores=*/all_scores.mutable_data_ptr<T>(),
                          /*grads=*/static_cast<Operand*>(all_grads.mutable_data_ptr()),
                          losses.mutable_data_ptr<T>(),
                          /*grad_hidden=*/results.hidden.mutable_data_ptr<T>(),
                          /*grad_rows=*/results.rows.mutable_data_ptr<T>(),
                          /*grad_bias=*/mutable_data_or_null<T>(results.bias)},
                         stream);
    multiply(grad_h, grads, rows, /*add=*/!args.in_batch);  // adds to what make_losses wrote
    multiply(grad_rows, grads.t(), h, /*add=*/first > 0);
    if (!has_bias) continue;
    if (first == 0) {
      at::sum_out(grad_bias, grads, /*dim=*/0, /*keepdim=*/false, grad_bias.scalar_type());
    } else {
      grad_bias.add_(at::sum(grads, /*dim=*/0, /*keepdim=*/false, grad_bias.scalar_type()));
    }
  }
  if (!returns_all_losses) at::sum_out(results.loss, losses, /*dim=*/0);
}

}  // namespace

void sampled_loss(const LossTensors& args, const LossOptions<double>& options, LossResults& results) {
  const DeviceGuard guard(args.hidden.device());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  switch (args.hidden.scalar_type()) {
    case at::kFloat:
      return run_in_chunks<float>(args, options.as<float>(), results);
    case at::kDouble:
      return run_in_chunks<double>(args, options.as<double>(), results);
    default:
      return run_in_chunks<uint16_t>(args, options.as<float>(), results);
  }
}

}  // namespace grf::cuda
