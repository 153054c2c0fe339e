// The operators sparse_adagrad_ and sparse_adam_: check arguments and prepare them for the kernels. Specification:
// gru4rec_fast/ops/sparse_update.py.
//
// On CUDA, at::sort sorts `index` and returns the original position of each element, which is also the row of its
// gradient. The sort is stable: gradients of the same table row keep their order. Then one kernel updates the table. To
// avoid a GPU synchronization, the number of distinct rows stays on the device, and the kernel checks the range of
// `index`.
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

constexpr int64_t kNoRow = -1;  // an index that is skipped

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
    const Tensor positions = at::nonzero(index.ne(kNoRow)).squeeze(1);
    index = index.index_select(0, positions), grad = grad.index_select(0, positions);
  }
  update_rows(table, index.const_data_ptr<int64_t>(), index.numel(), grad.const_data_ptr<T>(), options);
}

template <typename T, template <typename> class Options>
void run_on_cuda(const RowTable<T>& table, const Tensor& index, const Tensor& grad, const Options<T>& options) {
  const DeviceGuard guard(index.device());
  const auto [sorted_index, positions] = at::sort(index, /*stable=*/true, /*dim=*/0, /*descending=*/false);
  const cuda::SortedGradients<T> gradients{.sorted_index = sorted_index.template const_data_ptr<int64_t>(),
                                           .positions = positions.template const_data_ptr<int64_t>(),
                                           .grad = grad.const_data_ptr<T>(),
                                           .n = index.numel()};
  cuda::update_rows(table, gradients, options, current_stream(index.device()));
}

// Copies `updated` back to `argument` if `updated` is a contiguous copy and not `argument` itself.
void copy_back(const Tensor& updated, const OptionalTensor& argument) {
  if (updated.defined() && !updated.is_same(*argument)) argument->copy_(updated);
}

// Checks the tensors and updates them. Both operators call it. name_1 and name_2 are the names of the two state
// arguments in the schema.
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
  const Tensor contiguous_index = contiguous(index, "index", {index.numel()}, at::kLong, device);
  const Tensor contiguous_grad = contiguous(grad, "grad", grad_shape, dtype, device);
  const Tensor updated_table = table.contiguous();
  const Tensor updated_1 = contiguous(state_1, name_1, table.sizes(), dtype, device);
  const Tensor updated_2 = contiguous(state_2, name_2, table.sizes(), dtype, device);
  if constexpr (kernels == Kernels::cpu) {
    check_index(contiguous_index.const_data_ptr<int64_t>(), index.numel(), n_rows);
  }
  if (grad.numel() == 0) return;
  AT_DISPATCH_FLOATING_TYPES(dtype, "sparse_update", [&] {
    const RowTable<scalar_t> row_table{.weight = updated_table.mutable_data_ptr<scalar_t>(),
                                       .state_1 = mutable_data_or_null<scalar_t>(updated_1),
                                       .state_2 = mutable_data_or_null<scalar_t>(updated_2),
                                       .n_rows = n_rows,
                                       .width = grad.numel() / index.numel()};
    if constexpr (kernels == Kernels::cuda) {
      run_on_cuda(row_table, contiguous_index, contiguous_grad, options.template as<scalar_t>());
    } else {
      run_on_cpu(row_table, contiguous_index, contiguous_grad, options.template as<scalar_t>());
    }
  });
  copy_back(updated_table, table);
  copy_back(updated_1, state_1);
  copy_back(updated_2, state_2);
}

template <Kernels kernels>
void sparse_adagrad_(const Tensor& table, const Tensor& accumulator, const OptionalTensor& velocity,
                     const Tensor& index, const Tensor& grad, double lr, double momentum, double eps) {
  TORCH_CHECK_VALUE(velocity.has_value() || momentum == 0, "momentum=", momentum,
                    " needs a velocity tensor; pass one, or momentum=0");
  update<kernels>("sparse_adagrad_", table, "accumulator", accumulator, "velocity", velocity, index, grad,
                  AdagradOptions<double>{.lr = lr, .momentum = momentum, .eps = eps});
}

template <Kernels kernels>
void sparse_adam_(const Tensor& table, const Tensor& exp_avg, const Tensor& exp_avg_sq, const Tensor& index,
                  const Tensor& grad, int64_t step, double lr, double beta1, double beta2, double eps) {
  TORCH_CHECK_VALUE(step >= 1, "step=", step, ": must be at least 1");
  update<kernels>("sparse_adam_", table, "exp_avg", exp_avg, "exp_avg_sq", exp_avg_sq, index, grad,
                  AdamOptions<double>{.step_size = adam_step_size(lr, beta1, beta2, step),
                                      .mean_weight = 1 - beta1,
                                      .square_weight = 1 - beta2,
                                      .eps = eps});
}

GRF_REGISTER(sparse_adagrad_)
GRF_REGISTER(sparse_adam_)

}  // namespace
}  // namespace grf
