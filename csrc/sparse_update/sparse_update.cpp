// The operators sparse_adagrad_ and sparse_adam_: checks of arguments, and the steps before the kernels. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// On CUDA, torch sorts the positions in `index` by row with a stable sort, and one kernel does the rest. To avoid a GPU
// synchronization, the number of distinct rows stays on the device, and the kernel checks the range of `index`.
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
    TORCH_CHECK_VALUE(kNoRow <= index[i] && index[i] < n_rows, "index[", i, "] = ", index[i],
                      " is out of range for a table of ", n_rows, " rows; it must be -1 (no row) or a row");
  }
}

template <typename T, template <typename> class Options>
void run_on_cpu(const RowTable<T>& table, Tensor index, Tensor grad, const Options<T>& options) {
  const int64_t *begin = index.const_data_ptr<int64_t>(), *end = begin + index.numel();
  if (std::find(begin, end, kNoRow) != end) {
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

// Copies the result into an argument that is not contiguous, of which a copy was updated.
void copy_back(const Tensor& updated, const OptionalTensor& argument) {
  if (updated.defined() && !updated.is_same(*argument)) argument->copy_(updated);
}

// Implements both operators: checks the tensors and updates them. `name_1` and `name_2` are the names of the
// optimizer's state in the schema.
template <Kernels kernels, template <typename> class Options>
void update(const char* op, const Tensor& table, const char* name_1, const OptionalTensor& state_1, const char* name_2,
            const OptionalTensor& state_2, const Tensor& index, const Tensor& grad, const Options<double>& options) {
  TORCH_CHECK_VALUE(table.dim() >= 1, "table must be [R, ...], not a scalar");
  const auto dtype = table.scalar_type();
  check_kernel_dtype(op, dtype);
  const at::Device device = table.device();
  const int64_t n_rows = table.size(0);
  auto grad_shape = table.sizes().vec();
  grad_shape[0] = index.numel();
  const Tensor i = contiguous(index, "index", {index.numel()}, at::kLong, device);
  const Tensor g = contiguous(grad, "grad", grad_shape, dtype, device), w = table.contiguous();
  const Tensor s1 = contiguous(state_1, name_1, table.sizes(), dtype, device);
  const Tensor s2 = contiguous(state_2, name_2, table.sizes(), dtype, device);
  if constexpr (kernels == Kernels::cpu) check_index(i.const_data_ptr<int64_t>(), i.numel(), n_rows);
  if (g.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(dtype, "sparse_update", [&] {
    const RowTable<scalar_t> rows{w.mutable_data_ptr<scalar_t>(), mutable_data_or_null<scalar_t>(s1),
                                  mutable_data_or_null<scalar_t>(s2), n_rows, g.numel() / i.numel()};
    if constexpr (kernels == Kernels::cuda) {
      run_on_cuda(rows, i, g, options.template as<scalar_t>());
    } else {
      run_on_cpu(rows, i, g, options.template as<scalar_t>());
    }
  });
  copy_back(w, table);
  copy_back(s1, state_1);
  copy_back(s2, state_2);
}

template <Kernels kernels>
void sparse_adagrad_(const Tensor& table, const Tensor& accumulator, const OptionalTensor& velocity,
                     const Tensor& index, const Tensor& grad, double lr, double momentum, double eps) {
  TORCH_CHECK_VALUE(velocity.has_value() || momentum == 0, "momentum=", momentum,
                    " needs a velocity tensor; pass one, or momentum=0");
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

GRF_REGISTER(sparse_adagrad_)
GRF_REGISTER(sparse_adam_)

}  // namespace
}  // namespace grf
