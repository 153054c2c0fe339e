// A training step between its products and kernels. Specification: gru4rec_fast/ops/training_step.py.
#include "common/bfloat16.h"
#include "common/simt.cuh"
#include "sparse_update/cuda.cuh"
#include "training_step/training_step.h"

namespace grf::cuda {

constexpr int kStepThreads = 256;
constexpr int kStepBlocks = 3;  // that share the registers of an SM: without the number, ptxas spills

// N columns, from `column` on, of the row that place `i` of the index asks for.
template <typename T, int N>
__device__ __forceinline__ void gather_columns(const GatheredRows<T>& p, int64_t i, int64_t column) {
  const int64_t row = p.index[i], to = i * p.width + column;
  GRF_DEVICE_CHECK(row >= -1 && row < p.n_rows, "index: out of range, it names a row that the table does not have");
  Columns<T, N> values = {};
  if (row >= 0) values = columns_at<T, N>(p.table + row * p.width + column);
  if (p.mask != nullptr) {
    const Columns<T, N> mask = columns_at<T, N>(p.mask + to);
    for (int j = 0; j < N; ++j) values.at[j] *= mask.at[j];
  }
  if (p.as_16 == nullptr) return put_columns(p.rows + to, values);
  Columns<uint16_t, N> narrow;
  for (int j = 0; j < N; ++j) narrow.at[j] = narrow_bfloat16(static_cast<float>(values.at[j]));
  put_columns(p.as_16 + to, narrow);
}

// Bias and logQ correction of item `i`.
template <typename T>
__device__ __forceinline__ void gather_numbers(const StepGather<T>& p, int64_t i) {
  const int64_t item = p.items.index[i];
  p.biases[i] = item < 0 ? T{0} : p.bias[item];
  if (p.log_support == nullptr) return;
  const T strength = i % p.columns < p.lanes ? p.logq : p.logq_negatives;
  p.log_q[i] = item < 0 ? T{0} : strength * p.log_support[item];
}

// x, rows, biases and log_q of a block.
//
// Launch: one dimension, any number of blocks of any size; a thread takes N neighboring columns of a row, of the
// inputs' first, then of the items', in strides of the grid. Of each number one is read, and one written (half as many
// bytes in bfloat16); of a mask one more is read.
template <typename T, int N>
__global__ void __launch_bounds__(kStepThreads) step_gather_kernel(StepGather<T> p) {
  const int64_t per_input = p.inputs.width / N, per_item = p.items.width / N;
  const int64_t of_inputs = p.inputs.n * per_input, total = of_inputs + p.items.n * per_item;
  for (int64_t k = global_thread(); k < total; k += all_threads()) {
    if (k < of_inputs) {
      const int64_t i = quotient(k, per_input);
      gather_columns<T, N>(p.inputs, i, (k - i * per_input) * N);
      continue;
    }
    const int64_t i = quotient(k - of_inputs, per_item), column = (k - of_inputs - i * per_item) * N;
    gather_columns<T, N>(p.items, i, column);
    if (column == 0) gather_numbers(p, i);
  }
}

// Launch: one warp. Moves a few bytes.
template <typename T>
__global__ void __launch_bounds__(32) step_settle_kernel(StepSettle<T> p) {
  bool finite = true;
  for (int64_t t = threadIdx.x; t < p.steps; t += 32) {
    const T loss = p.played[t] ? p.losses[t] : T{0};
    p.kept[t] = loss;
    finite &= loss - loss == 0;  // neither infinite nor NaN
  }
  finite = __all_sync(kAllLanes, finite);
  if (threadIdx.x != 0) return;
  const bool stopped = *p.stopped || !finite;
  *p.stopped = stopped;
  *p.moves = p.played[0] && !stopped;
}

template <typename T>
__device__ __forceinline__ AdagradOptions<T> options_of(const double* numbers) {
  return {static_cast<T>(numbers[0]), static_cast<T>(numbers[1]), static_cast<T>(numbers[2])};
}

// Launch: one dimension, any number of blocks of any size; threads take the numbers of all tensors, one after the
// other, in strides of the grid. Of a weight 4 numbers are read and 3 written with momentum, 3 and 2 without; of a
// state one and one. Nothing, where nothing is to move.
template <typename T>
__global__ void __launch_bounds__(kStepThreads) step_apply_kernel(StepApply<T> p) {
  if (!*p.moves) return;
  const AdagradOptions<T> options = options_of<T>(p.numbers);
  int tensor = 0;
  for (int64_t k = global_thread(); k < p.of[p.n - 1].end; k += all_threads()) {
    while (k >= p.of[tensor].end) ++tensor;
    const WholeTensor<T>& of = p.of[tensor];
    const int64_t i = k - (tensor == 0 ? 0 : p.of[tensor - 1].end);
    if (of.accumulator == nullptr) {
      of.weight[i] = of.grad[i];
    } else {
      move_columns<T, 1>(options, columns_at<T, 1>(of.grad + i), of.weight + i, of.accumulator + i,
                         at_or_null(of.velocity, i));
    }
  }
}

// The bias of a row whose places are [begin, end): moved by the gradients of those that are items.
template <typename T>
__device__ __forceinline__ void move_bias(const StepRows<T>& p, const AdagradOptions<T>& options, int64_t row,
                                          int64_t begin, int64_t end) {
  while (begin < end && p.positions[begin] < p.n_inputs) ++begin;  // positions rise
  if (begin == end) return;
  const Columns<T, 1> grad =
      summed<T, 1>(begin, end, [&](int64_t place) { return p.grad_bias + p.positions[place] - p.n_inputs; });
  move_columns<T, 1>(options, grad, p.bias + row, p.bias_accumulator + row, at_or_null(p.bias_velocity, row));
}

// Moves the rows of a table, once each, and their biases.
//
// Launch: one dimension, any number of blocks of any size. A thread takes N columns, or the bias, of a row in strides
// of the grid; counted bytes as of update_rows_kernel (sparse_update/cuda.cuh). Nothing, where nothing is to move.
template <typename T, int N>
__global__ void __launch_bounds__(kStepThreads, kStepBlocks) step_rows_kernel(StepRows<T> p) {
  if (!*p.moves) return;
  GRF_DEVICE_CHECK(p.rows[0] >= -1 && p.rows[p.n - 1] < p.n_rows,
                   "rows: out of range, it names a row that the table does not have");
  const AdagradOptions<T> options = options_of<T>(p.numbers);
  const int64_t of_weight = p.width / N, parts = of_weight + (p.bias != nullptr);
  for_touched_rows(p.rows, p.n, parts, [&](int64_t row, int64_t begin, int64_t end, int64_t part) {
    if (part == of_weight) return move_bias(p, options, row, begin, end);
    const int64_t column = part * N, at = row * p.width + column;
    const Columns<T, N> grad = summed<T, N>(begin, end, [&](int64_t place) {
      const int64_t position = p.positions[place];
      return position < p.n_inputs ? p.grad_inputs + position * p.width + column
                                   : p.grad_items + (position - p.n_inputs) * p.width + column;
    });
    move_columns<T, N>(options, grad, p.weight + at, p.accumulator + at, at_or_null(p.velocity, at));
  });
}

namespace {

template <typename T>
bool has_wide_rows(const GatheredRows<T>& gathered) {
  return is_wide<T>(gathered.width, {gathered.table, gathered.mask, gathered.rows}) &&
         is_aligned(gathered.as_16, kWideBytes / 2);
}

}  // namespace

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream) {
  const int64_t numbers = gather.inputs.n * gather.inputs.width + gather.items.n * gather.items.width;
  by_columns<T>(has_wide_rows(gather.inputs) && has_wide_rows(gather.items), numbers, kStepThreads,
                [&](auto columns, unsigned blocks) {
                  GRF_LAUNCH((step_gather_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream,
                             gather);
                });
}

template <typename T>
void step_settle_(const StepSettle<T>& block, cudaStream_t stream) {
  GRF_LAUNCH((step_settle_kernel<T>), 1, 32, 0, stream, block);
}

template <typename T>
void step_apply_(const StepApply<T>& tensors, cudaStream_t stream) {
  const int64_t numbers = tensors.n == 0 ? 0 : tensors.of[tensors.n - 1].end;
  if (numbers == 0) return;
  GRF_LAUNCH((step_apply_kernel<T>), blocks_for(numbers, kStepThreads), kStepThreads, 0, stream, tensors);
}

template <typename T>
void step_rows_(const StepRows<T>& touched, cudaStream_t stream) {
  const bool wide = is_wide<T>(
      touched.width, {touched.grad_inputs, touched.grad_items, touched.weight, touched.accumulator, touched.velocity});
  const int64_t biases = touched.bias != nullptr ? touched.n : 0;
  by_columns<T>(
      wide, touched.n * touched.width, kStepThreads,
      [&](auto columns, unsigned blocks) {
        GRF_LAUNCH((step_rows_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream, touched);
      },
      biases);
}

#define GRF_INSTANTIATE(T)                                          \
  template void step_gather<T>(const StepGather<T>&, cudaStream_t); \
  template void step_settle_<T>(const StepSettle<T>&, cudaStream_t); \
  template void step_apply_<T>(const StepApply<T>&, cudaStream_t);   \
  template void step_rows_<T>(const StepRows<T>&, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
