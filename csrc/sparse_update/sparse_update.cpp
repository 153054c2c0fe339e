// The operators of optimizer steps on the touched rows of a table. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// On CUDA the positions in `index` are sorted by row, stably, by torch; the rest is one kernel. How many rows there are
// stays on the device. What `index` holds is checked there, which stops the kernel before anything is written.
#include "sparse_update/sparse_update.h"

#include <ATen/Dispatch.h>
#include <ATen/ops/nonzero.h>
#include <ATen/ops/sort.h>

#include <algorithm>
#include <tuple>

#include "common/device.h"
#include "common/operator.h"
#include "sparse_update/cpu.h"

namespace grf {
namespace {

using at::Tensor;
using OptionalTensor = std::optional<Tensor>;

constexpr int64_t kNoRow = -1;

void check_index(const int64_t* index, int64_t n, int64_t n_rows) {
  for (int64_t i = 0; i < n; ++i) {
    TORCH_CHECK_VALUE(kNoRow <= index[i] && index[i] < n_rows, "index out of range: index[", i, "] = ", index[i],
                      ", the table has ", n_rows, " rows");
  }
}

template <typename T, template <typename> class Options>
void run_on_cpu(const RowTable<T>& table, Tensor index, Tensor grad, const Options<T>& options) {
  const int64_t *first = index.const_data_ptr<int64_t>(), *end = first + index.numel();
  if (std::find(first, end, kNoRow) != end) {
    const Tensor live = at::nonzero(index.ne(kNoRow)).squeeze(1);
    index = index.index_select(0, live), grad = grad.index_select(0, live);
  }
  update_rows(table, index.const_data_ptr<int64_t>(), index.numel(), grad.const_data_ptr<T>(), options);
}

template <typename T, template <typename> class Options>
void run_on_cuda(const RowTable<T>& table, const Tensor& index, const Tensor& grad, const Options<T>& options) {
  const DeviceGuard guard(index.device());
  const auto [rows, positions] = at::sort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  cuda::update_rows(
      cuda::TouchedRows<T>{rows.template const_data_ptr<int64_t>(), positions.template const_data_ptr<int64_t>(),
                           grad.const_data_ptr<T>(), index.numel(), table},
      options, current_stream(index.device()));
}

void copy_back(const Tensor& updated,
               const OptionalTensor& given) {  // one that is not contiguous was updated in a copy
  if (updated.defined() && !updated.is_same(*given)) given->copy_(updated);
}

// One operator: checks its tensors, whose names are those of its schema, and updates them.
template <Kernels kernels, template <typename> class Options>
void update(const char* op, const Tensor& table, const char* first_name, const OptionalTensor& first,
            const char* second_name, const OptionalTensor& second, const Tensor& index, const Tensor& grad,
            const Options<double>& options) {
  TORCH_CHECK_VALUE(table.dim() >= 1, "table must be [R, ...], not a scalar");
  const auto dtype = table.scalar_type();
  check_kernel_dtype(op, dtype);
  const at::Device device = table.device();
  const int64_t n_rows = table.size(0);
  auto grad_shape = table.sizes().vec();
  grad_shape[0] = index.numel();
  const Tensor i = contiguous(index, "index", {index.numel()}, at::kLong, device);
  const Tensor g = contiguous(grad, "grad", grad_shape, dtype, device), w = table.contiguous();
  const Tensor one = contiguous(first, first_name, table.sizes(), dtype, device);
  const Tensor two = contiguous(second, second_name, table.sizes(), dtype, device);
  if constexpr (kernels == Kernels::cpu) check_index(i.const_data_ptr<int64_t>(), i.numel(), n_rows);
  if (g.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(dtype, "sparse_update", [&] {
    const RowTable<scalar_t> rows{w.mutable_data_ptr<scalar_t>(), mutable_data_or_null<scalar_t>(one),
                                  mutable_data_or_null<scalar_t>(two), n_rows, g.numel() / i.numel()};
    if constexpr (kernels == Kernels::cuda) {
      run_on_cuda(rows, i, g, options.template as<scalar_t>());
    } else {
      run_on_cpu(rows, i, g, options.template as<scalar_t>());
    }
  });
  copy_back(w, table);
  copy_back(one, first);
  copy_back(two, second);
}

void check_momentum(double momentum, const char* name, const OptionalTensor& state) {
  TORCH_CHECK_VALUE(state.has_value() || momentum == 0, "momentum=", momentum, " needs a ", name, " tensor");
}

template <Kernels kernels>
void sparse_adagrad_(const Tensor& table, const Tensor& accumulator, const OptionalTensor& velocity, const Tensor& index,
                    const Tensor& grad, double lr, double momentum, double eps) {
  check_momentum(momentum, "velocity", velocity);
  update<kernels>("sparse_adagrad_", table, "accumulator", accumulator, "velocity", velocity, index, grad,
                  AdagradOptions<double>{lr, momentum, eps});
}

template <Kernels kernels>
void sparse_adam_(const Tensor& table, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& index,
                 const Tensor& grad, int64_t step, double lr, double beta1, double beta2, double eps) {
  TORCH_CHECK_VALUE(step >= 1, "step=", step, ": counts from 1");
  update<kernels>("sparse_adam_", table, "exp_avg", exp_avg, "exp_avg_sq", exp_avg_sq, index, grad,
                  AdamOptions<double>{adam_step_size(lr, beta1, beta2, step), 1 - beta1, 1 - beta2, eps});
}

template <Kernels kernels>
void implement(torch::Library& m) {
  m.impl("sparse_adagrad_", &sparse_adagrad_<kernels>);
  m.impl("sparse_adam_", &sparse_adam_<kernels>);
}
GRF_REGISTER(implement)

}  // namespace
}  // namespace grf
