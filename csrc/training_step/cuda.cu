// The kernels that a captured training step runs between the operators of the other folders of csrc/.
// Specification: gru4rec_fast/ops/training_step.py.
//
// Expected times are estimates for an H200 (4.8 TB/s) and one step of B = 32 lanes with 2048 negatives, H = 100,
// float32. All are shorter than a launch, which takes about 3 us. The bottleneck is therefore the launch; for larger
// steps the bottleneck is memory.
#include "common/bfloat16.h"
#include "common/simt.cuh"
#include "sparse_update/cuda.cuh"
#include "training_step/training_step.h"

namespace grf::cuda {

constexpr int kStepThreads = 256;
// Minimum number of resident blocks per SM: a thread may use 80 registers. Without it, the compiler makes room for more
// blocks and spills registers.
constexpr int kStepBlocksPerSm = 3;

// Copies N columns of row index[i], starting at `column`.
template <typename T, int N>
__device__ __forceinline__ void gather_columns(const GatheredRows<T>& p, int64_t i, int64_t column) {
  const int64_t row = p.index[i], offset = i * p.width + column;
  GRF_DEVICE_CHECK(row >= -1 && row < p.n_rows, "index: holds a row that is out of range for the table");
  Columns<T, N> values = {};
  if (row >= 0) values = load_columns<T, N>(p.table + row * p.width + column);
  if (p.mask != nullptr) {
    const Columns<T, N> mask = load_columns<T, N>(p.mask + offset);
    for (int j = 0; j < N; ++j) values.at[j] *= mask.at[j];
  }
  if (p.bf16_rows == nullptr) return store_columns(p.rows + offset, values);
  Columns<uint16_t, N> narrow;
  for (int j = 0; j < N; ++j) narrow.at[j] = narrow_bfloat16(static_cast<float>(values.at[j]));
  store_columns(p.bf16_rows + offset, narrow);
}

// Returns what is added to the scores of item i: its bias minus its logQ correction. An index of -1 gets -inf, so that
// no row of scores uses the column.
template <typename T>
__device__ __forceinline__ T score_offset(const StepGather<T>& p, int64_t i) {
  const int64_t item = p.items.index[i];
  if (item < 0) return -static_cast<T>(INFINITY);
  if (p.log_support == nullptr) return p.bias[item];
  // The items of a step are `lanes` targets, then negatives, together `columns` items.
  const T strength = i % p.columns < p.lanes ? p.logq : p.logq_negatives;
  return p.bias[item] - strength * p.log_support[item];
}

// Computes the embeddings x, the output rows and the score offsets of a block of training steps.
//
// Launch: one dimension, any number of blocks of up to kStepThreads threads, no shared memory. A task is N neighboring
// columns of a row, first of the inputs, then of the items; threads take tasks in a grid-stride loop. The kernel reads
// each element of the rows and of the mask once and writes each result once: 1.7 MB, 0.4 us.
template <typename T, int N>
__global__ void __launch_bounds__(kStepThreads) step_gather_kernel(StepGather<T> p) {
  const int64_t per_input = p.inputs.width / N, per_item = p.items.width / N;  // tasks
  const int64_t input_tasks = p.inputs.n * per_input, n_tasks = input_tasks + p.items.n * per_item;
  for (int64_t k = global_thread(); k < n_tasks; k += all_threads()) {
    if (k < input_tasks) {
      const int64_t i = quotient(k, per_input);
      gather_columns<T, N>(p.inputs, i, (k - i * per_input) * N);
      continue;
    }
    const int64_t i = quotient(k - input_tasks, per_item), column = (k - input_tasks - i * per_item) * N;
    gather_columns<T, N>(p.items, i, column);
    if (column == 0) p.offsets[i] = score_offset(p, i);
  }
}

// Sums the losses of each step of a block and decides whether to update the weights. The weights are not updated if a
// loss of this or an earlier block was infinite or NaN, or if no step of the block is active. A step is active if it
// has at least as many live lanes as the loader's min_live.
//
// Launch: one warp, no shared memory; the threads of the warp share the lanes of one step after another. The kernel
// reads a loss per lane: 128 bytes. Expected: the time of a launch, which is the bottleneck, with one latency of
// memory.
template <typename T>
__global__ void __launch_bounds__(32) step_store_losses_kernel(StepStoreLosses<T> p) {
  bool finite = true;
  for (int64_t t = 0; t < p.steps; ++t) {
    T loss = 0;
    for (int64_t lane = threadIdx.x; lane < p.lanes; lane += 32) loss += p.losses[t * p.lanes + lane];
    for (int bit = 16; bit > 0; bit /= 2) loss += __shfl_xor_sync(kAllLanes, loss, bit);
    if (!p.active[t]) loss = 0;
    if (threadIdx.x == 0) p.step_losses[t] = loss;
    finite &= loss - loss == 0;  // neither infinite nor NaN
  }
  if (threadIdx.x != 0) return;
  const bool stopped = *p.stopped || !finite;
  *p.stopped = stopped;
  *p.enabled = p.active[0] && !stopped;  // inactive steps come last
}

template <typename T>
__device__ __forceinline__ AdagradOptions<T> adagrad_options(const double* hyperparameters) {
  return {static_cast<T>(hyperparameters[0]), static_cast<T>(hyperparameters[1]), static_cast<T>(hyperparameters[2])};
}

// Updates whole weights by Adagrad with momentum, and overwrites hidden states.
//
// Launch: one dimension, any number of blocks of up to kStepThreads threads, no shared memory, grid-stride loop over
// the elements of all tensors. With momentum, the kernel reads 4 elements and writes 3 per element of a weight; without
// momentum, it reads 3 and writes 2. Per element of a state, it reads one and writes one. For one GRU layer that is 1.7
// MB, 0.4 us.
template <typename T>
__global__ void __launch_bounds__(kStepThreads) step_apply_kernel(StepApply<T> p) {
  if (!*p.enabled) return;
  const AdagradOptions<T> options = adagrad_options<T>(p.hyperparameters);
  int tensor = 0;
  for (int64_t k = global_thread(); k < p.tensors[p.n - 1].end; k += all_threads()) {
    while (k >= p.tensors[tensor].end) ++tensor;
    const DenseUpdate<T>& update = p.tensors[tensor];
    const int64_t i = k - (tensor == 0 ? 0 : p.tensors[tensor - 1].end);
    if (update.accumulator == nullptr) {
      update.weight[i] = update.grad[i];  // a hidden state, whose new value is `grad`
    } else {
      update_columns<T, 1>(options, load_columns<T, 1>(update.grad + i), update.weight + i, update.accumulator + i,
                           offset_or_null(update.velocity, i));
    }
  }
}

constexpr int kTile = 32;  // rows and columns of a weight that a block of step_products_kernel computes together
constexpr int kTileRows = kTile * kTile / kStepThreads;  // rows of one column that a thread computes

// Values of kTileRows neighboring rows, which are loaded together.
template <typename T>
struct alignas(16) RowValues {
  T at[kTileRows];
};

// Computes gradients that are products, left^T right, and updates their weights by Adagrad with momentum at once, so
// that no gradient is stored. Also overwrites hidden states.
//
// Launch: one dimension, any number of blocks of kStepThreads threads; blocks take tiles of kTile x kTile elements in a
// grid-stride loop. A tile's factors are staged kTile deep in 8 KB (float32) of shared memory. Each tile reads its
// columns of both factors once, and weight and state of its elements once. For one layer of B = 32, H = 100: 120
// tiles, 1.6 MB, 3.8 MFLOP. Expected on an H100 or H200: 2.5 us, two latencies of memory and 32 multiply-add steps; the
// bottleneck is latency. For B = 128, H = 512 it is arithmetic and shared memory (400 MFLOP, four multiply-adds for two
// loads): 14 us, in which the 25 MB of weights and state (5 us) are hidden.
//
// Hazards: barriers separate the staging of factors from their use. `enabled` and the tile are the same for all threads
// of a block, so all of them pass the same barriers.
template <typename T>
__global__ void __launch_bounds__(kStepThreads) step_products_kernel(StepProducts<T> p) {
  GRF_SHARED(lefts, RowValues<T>[kTile][kTile / kTileRows]);
  GRF_SHARED(rights, T[kTile][kTile]);
  if (!*p.enabled) return;
  const AdagradOptions<T> options = adagrad_options<T>(p.hyperparameters);
  const int x = static_cast<int>(threadIdx.x) % kTile, y = static_cast<int>(threadIdx.x) / kTile;
  int k = 0;
  for (int64_t tile = blockIdx.x; tile < p.products[p.n - 1].end_tile; tile += gridDim.x) {
    while (tile >= p.products[k].end_tile) ++k;
    const GradientProduct<T>& product = p.products[k];
    const int64_t tiles_per_row = (product.columns + kTile - 1) / kTile;
    const int64_t tile_of_product = tile - (k == 0 ? 0 : p.products[k - 1].end_tile);
    const int64_t first_row = quotient(tile_of_product, tiles_per_row) * kTile,
                  first_column = tile_of_product * kTile - first_row * tiles_per_row;
    const int64_t row = first_row + y * kTileRows, column = first_column + x;
    T sums[kTileRows] = {};
    for (int64_t first = 0; product.accumulator != nullptr && first < p.depth; first += kTile) {
      __syncthreads();  // the previous factors have been read
      for (int i = y; i < kTile; i += kStepThreads / kTile) {
        const int64_t d = first + i;
        const bool has_row = d < p.depth && first_row + x < product.rows,
                   has_column = d < p.depth && column < product.columns;
        lefts[i][x / kTileRows].at[x % kTileRows] = has_row ? product.left[d * product.rows + first_row + x] : T{0};
        rights[i][x] = !has_column                ? T{0}
                       : product.right == nullptr ? T{1}
                                                  : product.right[d * product.columns + column];
      }
      __syncthreads();
#pragma unroll 8
      for (int i = 0; i < kTile; ++i) {
        const RowValues<T> left = lefts[i][y];
        const T right = rights[i][x];
#pragma unroll
        for (int r = 0; r < kTileRows; ++r) sums[r] = fma(left.at[r], right, sums[r]);
      }
    }
    if (column >= product.columns) continue;
#pragma unroll
    for (int r = 0; r < kTileRows; ++r) {
      if (row + r >= product.rows) break;
      const int64_t i = (row + r) * product.columns + column;
      if (product.accumulator == nullptr) {
        product.weight[i] = product.left[i];
      } else {
        update_columns<T, 1>(options, {sums[r]}, product.weight + i, product.accumulator + i,
                             offset_or_null(product.velocity, i));
      }
    }
  }
}

// Updates the bias of `row` by the sum of its gradients. rows[begin .. end - 1] all equal `row`. A gradient whose
// position is below n_inputs belongs to an input item, which has no gradient of the bias. If the row has only such
// gradients, the bias does not change.
template <typename T>
__device__ __forceinline__ void update_bias(const StepRows<T>& p, const AdagradOptions<T>& options, int64_t row,
                                            int64_t begin, int64_t end) {
  while (begin < end && p.positions[begin] < p.n_inputs) ++begin;  // skips inputs, which come first
  if (begin == end) return;
  const Columns<T, 1> grad = sum_gradients<T, 1>(begin, end, [&](int64_t i) {
    return load_columns<T, 1>(p.grad_items + (p.positions[i] - p.n_inputs) * p.item_width + p.width);
  });
  update_columns<T, 1>(options, grad, p.bias + row, p.bias_accumulator + row, offset_or_null(p.bias_velocity, row));
}

// Updates each touched row of a table, and its bias, by Adagrad with momentum.
//
// Launch: one dimension, any number of blocks of up to kStepThreads threads, no shared memory. A task is N columns or
// the bias of a touched row; threads take tasks in a grid-stride loop. The kernel reads every gradient once, and reads
// and writes weight and optimizer state of each touched row once: 5.9 MB, 1.2 us.
//
// Hazard: a row out of range must stop the kernel before anything is written. The rows are sorted, so every thread
// first checks the first and the last row.
template <typename T, int N>
__global__ void __launch_bounds__(kStepThreads, kStepBlocksPerSm) step_rows_kernel(StepRows<T> p) {
  if (!*p.enabled) return;
  GRF_DEVICE_CHECK(p.rows[0] >= -1 && p.rows[p.n - 1] < p.n_rows,
                   "rows: holds a row that is out of range for the table");
  const AdagradOptions<T> options = adagrad_options<T>(p.hyperparameters);
  const int64_t weight_tasks = p.width / N, tasks = weight_tasks + (p.bias != nullptr);
  for_touched_rows(p.rows, p.n, tasks, [&](int64_t row, int64_t begin, int64_t end, int64_t task) {
    if (task == weight_tasks) return update_bias(p, options, row, begin, end);
    const int64_t column = task * N, offset = row * p.width + column;
    const Columns<T, N> grad = sum_gradients<T, N>(begin, end, [&](int64_t i) {
      const int64_t position = p.positions[i];
      if (position >= p.n_inputs) {
        return load_columns<T, N>(p.grad_items + (position - p.n_inputs) * p.item_width + column);
      }
      Columns<T, N> values = load_columns<T, N>(p.grad_inputs + position * p.width + column);
      if (p.mask != nullptr) {
        const Columns<T, N> mask = load_columns<T, N>(p.mask + position * p.width + column);
        for (int j = 0; j < N; ++j) values.at[j] *= mask.at[j];
      }
      return values;
    });
    update_columns<T, N>(options, grad, p.weight + offset, p.accumulator + offset, offset_or_null(p.velocity, offset));
  });
}

namespace {

// Returns whether kernels may copy kWideColumns columns of these rows together.
template <typename T>
bool has_wide_rows(const GatheredRows<T>& gathered) {
  return is_wide<T>(gathered.width, {gathered.table, gathered.mask, gathered.rows}) &&
         is_aligned(gathered.bf16_rows, kWideBytes / 2);
}

}  // namespace

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream) {
  const int64_t n_elements = gather.inputs.n * gather.inputs.width + gather.items.n * gather.items.width;
  launch_columns<T>(has_wide_rows(gather.inputs) && has_wide_rows(gather.items), n_elements, kStepThreads,
                    [&](auto columns, unsigned blocks) {
                      GRF_LAUNCH((step_gather_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream,
                                 gather);
                    });
}

template <typename T>
void step_store_losses_(const StepStoreLosses<T>& block_losses, cudaStream_t stream) {
  GRF_LAUNCH((step_store_losses_kernel<T>), 1, 32, 0, stream, block_losses);
}

template <typename T>
void step_apply_(const StepApply<T>& update, cudaStream_t stream) {
  const int64_t n_elements = update.n == 0 ? 0 : update.tensors[update.n - 1].end;
  if (n_elements == 0) return;
  GRF_LAUNCH((step_apply_kernel<T>), blocks_for(n_elements, kStepThreads), kStepThreads, 0, stream, update);
}

int64_t step_product_tiles(int64_t rows, int64_t columns) {
  return (rows + kTile - 1) / kTile * ((columns + kTile - 1) / kTile);
}

template <typename T>
void step_products_(const StepProducts<T>& update, cudaStream_t stream) {
  const int64_t n_tiles = update.n == 0 ? 0 : update.products[update.n - 1].end_tile;
  if (n_tiles == 0) return;
  GRF_LAUNCH((step_products_kernel<T>), blocks_for(n_tiles, 1), kStepThreads, 0, stream, update);
}

template <typename T>
void step_rows_(const StepRows<T>& update, cudaStream_t stream) {
  const bool wide = is_wide<T>(update.width, {update.grad_inputs, update.mask, update.grad_items, update.weight,
                                              update.accumulator, update.velocity}) &&
                    update.item_width % kWideColumns<T> == 0;
  const int64_t bias_tasks = update.bias != nullptr ? update.n : 0;
  launch_columns<T>(
      wide, update.n * update.width, kStepThreads,
      [&](auto columns, unsigned blocks) {
        GRF_LAUNCH((step_rows_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream, update);
      },
      bias_tasks);
}

#define GRF_INSTANTIATE(T)                                                      \
  template void step_gather<T>(const StepGather<T>&, cudaStream_t);             \
  template void step_store_losses_<T>(const StepStoreLosses<T>&, cudaStream_t); \
  template void step_apply_<T>(const StepApply<T>&, cudaStream_t);              \
  template void step_products_<T>(const StepProducts<T>&, cudaStream_t);        \
  template void step_rows_<T>(const StepRows<T>&, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
