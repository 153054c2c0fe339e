// Loss over in-batch and sampled negatives with its gradients, on CUDA. Specification:
// gru4rec_fast/ops/sampled_loss.py and sampled_loss_gradients.py.
//
// A chunk of rows at a time: one product by torch gives its scores, one kernel turns each row into its gradient, in
// place or, where products are of bfloat16, beside it; two products and a column sum carry that on. Products of float32
// follow torch's own setting: with TF32 allowed they use it.
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

// to = a b, or to += a b, summed in the dtype of `to`.
void multiply(Tensor& to, Tensor a, Tensor b, bool add) {
#ifdef GRF_EMULATED  // the products below are there on GPUs alone; those of operands converted are the same sums
  a = a.to(to.scalar_type());
  b = b.to(to.scalar_type());
#else
  if (a.scalar_type() != to.scalar_type()) {
    add ? at::addmm_out(to, to, a, b, to.scalar_type()) : at::mm_out(to, a, b, to.scalar_type());
    return;
  }
#endif
  add ? at::addmm_out(to, to, a, b) : at::mm_out(to, a, b);
}

// bias - log_q, -inf for the dead rows' columns; the bias itself where that is all, and undefined where there is none.
template <typename T>
Tensor score_offsets(const LossTensors& given, const at::TensorOptions& sums, cudaStream_t stream) {
  if (!given.log_q.defined() && !(given.in_batch && given.live.defined())) return given.bias;
  Tensor offsets = at::empty({given.rows.size(0)}, sums);
  const ScoreOffsets<T> columns{given.m(),
                                given.n(),
                                given.in_batch,
                                data_or_null<T>(given.bias),
                                data_or_null<T>(given.log_q),
                                data_or_null<bool>(given.live),
                                offsets.mutable_data_ptr<T>()};
  make_score_offsets(columns, stream);
  return offsets;
}

// Rows of a chunk: as many as fit, the chunks of about one size.
int64_t chunk_rows(int64_t m, int64_t bytes_of_row) {
  const int64_t fitting = std::max(kScoreBytes / bytes_of_row, kLeastScoreRows);
  const int64_t chunks = std::max((m + fitting - 1) / fitting, int64_t{1});
  return (m + chunks - 1) / chunks;
}

template <typename Operand, typename T = typename Stored<Operand>::Sum>
void run(const LossTensors& given, const LossOptions<T>& options, LossResults& to) {
  constexpr bool in_place = std::is_same_v<Operand, T>;
  const cudaStream_t stream = current_stream(given.hidden.device());
  const at::TensorOptions operands = given.hidden.options(), sums = to.hidden.options();
  const int64_t m = given.m(), n = given.n(), columns = given.columns();
  constexpr int64_t whole = in_place ? 4 : 8;  // rows, of gradients too, on whole 16 bytes
  const int64_t stride = std::max((columns + whole - 1) / whole, int64_t{1}) * whole;
  const int64_t chunk = chunk_rows(m, stride * static_cast<int64_t>(sizeof(T) + (in_place ? 0 : sizeof(Operand))));
  const Tensor offsets = score_offsets<T>(given, sums, stream);
  Tensor losses = at::empty({m}, sums), score_room = at::empty({chunk, stride}, sums);
  const Tensor grad_room = in_place ? score_room : at::empty({chunk, stride}, operands);
  const Tensor rows = given.of_columns(given.rows);
  Tensor grad_rows = given.of_columns(to.rows), grad_bias = given.of_columns(to.bias);
  if (m == 0) grad_rows.zero_(), grad_bias.zero_();
  for (int64_t first = 0; first < m; first += chunk) {
    const int64_t n_rows = std::min(chunk, m - first);
    const Tensor h = given.hidden.narrow(0, first, n_rows);
    const Tensor grads = grad_room.narrow(0, 0, n_rows).narrow(1, 0, columns);
    Tensor scores = score_room.narrow(0, 0, n_rows).narrow(1, 0, columns), grad_h = to.hidden.narrow(0, first, n_rows);
    multiply(scores, h, rows.t(), false);
    make_losses<Operand>({options,
                          m,
                          n,
                          given.hidden.size(1),
                          given.in_batch,
                          first,
                          n_rows,
                          static_cast<const Operand*>(given.hidden.const_data_ptr()),
                          static_cast<const Operand*>(given.rows.const_data_ptr()),
                          data_or_null<T>(offsets),
                          data_or_null<T>(given.count),
                          data_or_null<bool>(given.live),
                          data_or_null<int64_t>(given.ids),
                          stride,
                          score_room.mutable_data_ptr<T>(),
                          static_cast<Operand*>(grad_room.mutable_data_ptr()),
                          losses.mutable_data_ptr<T>(),
                          to.hidden.mutable_data_ptr<T>(),
                          to.rows.mutable_data_ptr<T>(),
                          to.bias.mutable_data_ptr<T>()},
                         stream);
    multiply(grad_h, grads, rows, !given.in_batch);
    multiply(grad_rows, grads.t(), h, first > 0);
    if (first == 0) {
      at::sum_out(grad_bias, grads, 0, false, grad_bias.scalar_type());
    } else {
      grad_bias.add_(at::sum(grads, 0, false, grad_bias.scalar_type()));
    }
  }
  at::sum_out(to.loss, losses, 0);
}

}  // namespace

void sampled_loss(const LossTensors& given, const LossOptions<double>& options, LossResults& to) {
  const DeviceGuard guard(given.hidden.device());
  const at::AutoDispatchBelowADInplaceOrView no_autograd;
  switch (given.hidden.scalar_type()) {
    case at::kFloat:
      return run<float>(given, options.as<float>(), to);
    case at::kDouble:
      return run<double>(given, options.as<double>(), to);
    default:
      return run<uint16_t>(given, options.as<float>(), to);
  }
}

}  // namespace grf::cuda
