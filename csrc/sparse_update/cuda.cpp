// Optimizer steps on the touched rows of a table, on CUDA. Specification: gru4rec_fast/reference/sparse_update.py.
//
// The positions in `index` are sorted by row, stably, by torch; the rest is one kernel. How many rows there are stays
// on the device. What `index` holds is checked there, which stops the kernel before anything is written.
#include "sparse_update/cuda.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/sort.h>

#include <optional>
#include <tuple>

#include "common/device.h"

namespace grf::cuda {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

void copy_back(const Tensor& updated,
               const OptionalTensor& given) {  // one that is not contiguous was updated in a copy
  if (updated.defined() && !updated.is_same(*given)) given->copy_(updated);
}

// One operator: checks its tensors, whose names are those of its schema, and updates them.
template <template <typename> class Options>
void update(const Tensor& table, const char* first_name, const OptionalTensor& first, const char* second_name,
            const OptionalTensor& second, const Tensor& index, const Tensor& grad, const Options<double>& options) {
  const at::Device device = table.device();
  const auto dtype = table.scalar_type();
  TORCH_CHECK_VALUE(table.dim() >= 1, "table must be [R, ...], not a scalar");
  TORCH_CHECK_VALUE(dtype == at::kFloat || dtype == at::kDouble, "table must be float32 or float64, not ",
                    dtype_name(dtype));
  auto grad_shape = table.sizes().vec();
  grad_shape[0] = index.numel();
  const auto like_table = [&](const OptionalTensor& tensor, const char* name) {
    return tensor ? contiguous_on(device, *tensor, name, table.sizes(), dtype) : Tensor();
  };
  const Tensor g = contiguous_on(device, grad, "grad", grad_shape, dtype);
  const Tensor i = contiguous_on(device, index, "index", {index.numel()}, at::kLong);
  const Tensor w = table.contiguous(), one = like_table(first, first_name), two = like_table(second, second_name);
  if (g.numel() == 0) return;

  const DeviceGuard guard(device);
  const auto [rows, positions] = at::sort(i, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const int64_t *sorted = rows.const_data_ptr<int64_t>(), *order = positions.const_data_ptr<int64_t>();
  AT_DISPATCH_FLOATING_TYPES(dtype, "sparse_update", [&] {
    const auto numbers = [](const Tensor& t) { return t.defined() ? t.mutable_data_ptr<scalar_t>() : nullptr; };
    const TouchedRows<scalar_t> touched{sorted,     order,        g.const_data_ptr<scalar_t>(),
                                        i.numel(),  w.size(0),    g.numel() / i.numel(),
                                        numbers(w), numbers(one), numbers(two)};
    update_rows(touched, options.template as<scalar_t>(), current_stream(device));
  });
  copy_back(w, table);
  copy_back(one, first);
  copy_back(two, second);
}

void check_momentum(double momentum, const char* name, const OptionalTensor& state) {
  TORCH_CHECK_VALUE(state.has_value() || momentum == 0, "momentum=", momentum, " needs a ", name, " tensor");
}

void sparse_sgd(const Tensor& table, const OptionalTensor& momentum_buffer, const Tensor& index, const Tensor& grad,
                double lr, double momentum) {
  check_momentum(momentum, "momentum_buffer", momentum_buffer);
  update(table, "momentum_buffer", momentum_buffer, "", std::nullopt, index, grad, SgdOptions<double>{lr, momentum});
}

void sparse_adagrad(const Tensor& table, const Tensor& accumulator, const OptionalTensor& velocity, const Tensor& index,
                    const Tensor& grad, double lr, double momentum, double eps) {
  check_momentum(momentum, "velocity", velocity);
  update(table, "accumulator", accumulator, "velocity", velocity, index, grad,
         AdagradOptions<double>{lr, momentum, eps});
}

void sparse_rmsprop(const Tensor& table, const Tensor& square_avg, const OptionalTensor& momentum_buffer,
                    const Tensor& index, const Tensor& grad, double lr, double alpha, double eps, double momentum) {
  check_momentum(momentum, "momentum_buffer", momentum_buffer);
  update(table, "square_avg", square_avg, "momentum_buffer", momentum_buffer, index, grad,
         RmspropOptions<double>{lr, 1 - alpha, eps, momentum});
}

void sparse_adam(const Tensor& table, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& index,
                 const Tensor& grad, int64_t step, double lr, double beta1, double beta2, double eps) {
  TORCH_CHECK_VALUE(step >= 1, "step=", step, ": counts from 1");
  update(table, "exp_avg", exp_avg, "exp_avg_sq", exp_avg_sq, index, grad,
         AdamOptions<double>{adam_step_size(lr, beta1, beta2, step), 1 - beta1, 1 - beta2, eps});
}

GRF_DEVICE_IMPL(m) {
  m.impl("sparse_sgd", &sparse_sgd);
  m.impl("sparse_adagrad", &sparse_adagrad);
  m.impl("sparse_rmsprop", &sparse_rmsprop);
  m.impl("sparse_adam", &sparse_adam);
}

}  // namespace
}  // namespace grf::cuda
