// The two kernels of the sampled loss. score_offsets_kernel computes the offsets that are added to the scores;
// loss_rows_kernel computes the losses of rows of scores and the gradients of the scores. Specification:
// gru4rec_fast/ops/sampled_loss.py and row_losses.py. sampled_loss/row_losses.cuh computes the losses.
#include "common/simt.cuh"
#include "sampled_loss/row_losses.cuh"
#include "sampled_loss/sampled_loss.h"

namespace grf::cuda {

// Computes offsets [M + N]: bias - log_q or, with in_batch, -inf for the target of a dead row.
//
// Launch: one dimension, any number of blocks of up to kLossThreads threads, grid-stride loop over columns. Reads
// two elements and a flag per column, and writes one element: 13 bytes in float32. For M + N = 8704 that is 0.1 MB,
// 0.02 us on an H200 (4.8 TB/s, estimated). The bottleneck is the launch.
template <typename T>
__global__ void __launch_bounds__(kLossThreads) score_offsets_kernel(ScoreOffsets<T> p) {
  for (int64_t j = global_thread(); j < p.m + p.n; j += all_threads()) {
    const T bias = p.bias == nullptr ? T{0} : p.bias[j], log_q = p.log_q == nullptr ? T{0} : p.log_q[j];
    const bool dead = p.in_batch && p.live != nullptr && j < p.m && !p.live[j];
    p.offsets[j] = dead ? -static_cast<T>(INFINITY) : bias - log_q;
  }
}

// Merges the sums of all threads of a block and returns them to every thread. The order of additions depends only on
// the block's size.
template <typename Sums>
__device__ __forceinline__ Sums block_sums(Sums thread_sums) {
  GRF_SHARED(warp_sums, Sums[kLossThreads / 32]);
  for (int bit = 16; bit > 0; bit /= 2) thread_sums.merge(thread_sums.shuffled(bit));
  __syncthreads();  // a previous call may still be reading warp_sums
  if (threadIdx.x % 32 == 0) warp_sums[threadIdx.x / 32] = thread_sums;
  __syncthreads();
  Sums total = warp_sums[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x / 32); ++warp) total.merge(warp_sums[warp]);
  return total;
}

// Returns the ELU of y with alpha = elu, or y if elu is 0.
template <typename T>
__device__ __forceinline__ T activate(T y, T elu) {
  return elu == 0 || y > 0 ? y : elu * expm1(y);
}

// Returns the dot product of a hidden state with its target's item embedding.
template <typename Operand>
__device__ __forceinline__ typename Stored<Operand>::Sum target_product(const ScoreRows<Operand>& p, int64_t row) {
  using Number = Stored<Operand>;
  RowSums<typename Number::Sum, 0, 0> sums;
  sums.clear();
  for (int64_t k = threadIdx.x; k < p.width; k += blockDim.x) {
    sums.values[0] += Number::widen(p.hidden[row * p.width + k]) * Number::widen(p.rows[row * p.width + k]);
  }
  return block_sums(sums).values[0];
}

// Without in_batch: writes the gradients through the score of a row's own target. `grad_score` is the gradient of that
// score.
template <typename Operand>
__device__ __forceinline__ void write_target_gradients(const ScoreRows<Operand>& p, int64_t row, Operand grad_score) {
  using Number = Stored<Operand>;
  const typename Number::Sum grad = Number::widen(grad_score);
  for (int64_t k = row * p.width + threadIdx.x; k < (row + 1) * p.width; k += blockDim.x) {
    p.grad_hidden[k] = grad * Number::widen(p.rows[k]);
    p.grad_rows[k] = grad * Number::widen(p.hidden[k]);
  }
  if (threadIdx.x == 0) p.grad_bias[row] = grad;
}

// The number of blocks per SM for which the compiler limits the registers of a thread. With more blocks, the kernels of
// some losses spill registers on some GPUs.
template <typename T>
constexpr int kBlocksPerSm = sizeof(T) == 4 ? 4 : 2;

// Computes the loss of a row and the gradients `grads` of its scores. The first pass over the columns computes sums and
// stores the scores after the ELU in `x`, which may be `scores` itself. The second pass computes the gradients.
template <typename Operand, RankingLoss kLoss, typename T>
__device__ __forceinline__ void make_loss(const ScoreRows<Operand>& p, int64_t row, T* scores, Operand* grads, T* x) {
  using Number = Stored<Operand>;
  const T masked = -static_cast<T>(INFINITY);
  const int64_t columns = p.columns(), first_item = p.first_item(), target_column = p.in_batch ? row : -1;
  const int64_t n_targets = p.in_batch ? p.m : 0;  // the targets are the first columns
  const auto offset = [&](int64_t j) { return p.offsets == nullptr ? T{0} : p.offsets[j]; };
  const auto count = [&](int64_t j) { return p.count == nullptr || j < n_targets ? T{1} : p.count[j - n_targets]; };
  if (p.live != nullptr && !p.live[row]) {
    for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) grads[j] = Operand{0};
    if (!p.in_batch) write_target_gradients(p, row, Operand{0});
    if (threadIdx.x == 0) p.losses[row] = 0;
    return;
  }
  const T elu = kLoss == RankingLoss::bpr_max ? p.options.elu : T{0};
  const T target = activate((p.in_batch ? scores[row] : target_product(p, row)) + offset(row), elu);
  using Loss = RowLoss<T, kLoss>;
  typename Loss::Sums sums;
  sums.clear();
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
    if (j == target_column) continue;
    const T column_offset = offset(first_item + j), y = scores[j] + column_offset;
    const bool hit = p.ids != nullptr && p.ids[first_item + j] == p.ids[row];
    const T value = hit || column_offset == masked || y == masked ? masked : activate(y, elu);
    x[j] = value;
    if (value == masked) continue;
    sums.values[0] += count(j);
    Loss::add(sums, value, count(j), target);
  }
  const Loss loss(block_sums(sums), target, p.options);
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
    if (j == target_column) continue;
    grads[j] = Number::narrow(x[j] == masked ? T{0} : loss.gradient(x[j], count(j)));
  }
  if (!p.in_batch) write_target_gradients(p, row, Number::narrow(loss.grad_target));
  if (threadIdx.x != 0) return;
  if (p.in_batch) grads[row] = Number::narrow(loss.grad_target);
  p.losses[row] = loss.loss * p.options.scale;
}

// Computes the losses and the gradients of scores of a chunk of rows.
//
// Launch: one dimension; any number of blocks of up to kLossThreads threads, a multiple of 32. A block computes one row
// at a time, in a grid-stride loop. With `row_in_shared`, dynamic shared memory holds one row of scores.
//
// Scores are read once and gradients are written once. A row that does not fit into shared memory is also written and
// read once between the passes. Offsets, counts and ids of the columns are the same for all rows and come from caches.
// Without in_batch, each row also reads two rows of H elements and writes two. For 512 rows of 8704 columns in float32,
// in-batch, that is 36 MB, 7.4 us on an H200 (4.8 TB/s, estimated). The bottleneck is memory or L2. For bpr-max and
// top1-max the bottleneck may also be exp: four or more calls per column take about as long.
//
// Hazard: each thread reads and writes only its own columns of x and grads, so no barrier is needed between the passes.
// All threads read the score of the row's own target. The gradient of this score may overwrite it, so the gradient is
// written after the barriers of block_sums.
template <typename Operand, RankingLoss kLoss>
__global__ void __launch_bounds__(kLossThreads, kBlocksPerSm<typename Stored<Operand>::Sum>)
    loss_rows_kernel(ScoreRows<Operand> p, bool row_in_shared) {
  using T = typename Stored<Operand>::Sum;
  GRF_DYNAMIC_SHARED(shared_row, T);
  for (int64_t i = blockIdx.x; i < p.n_rows; i += gridDim.x) {
    T* const scores = p.scores + i * p.stride;
    make_loss<Operand, kLoss>(p, p.first + i, scores, p.grads + i * p.stride, row_in_shared ? shared_row : scores);
  }
}

namespace {

template <typename Operand, RankingLoss kLoss>
void launch_loss_rows(const ScoreRows<Operand>& args, cudaStream_t stream) {
  using T = typename Stored<Operand>::Sum;
  const int64_t bytes = args.columns() * static_cast<int64_t>(sizeof(T));
  const bool in_shared = bytes > 0 && bytes <= kSharedRowBytes;
  const size_t shared = in_shared ? static_cast<size_t>(bytes) : sizeof(T);  // at least one byte, even if unused
  GRF_LAUNCH((loss_rows_kernel<Operand, kLoss>), blocks_for(args.n_rows, 1), kLossThreads, shared, stream, args,
             in_shared);
}

}  // namespace

template <typename T>
void make_score_offsets(const ScoreOffsets<T>& args, cudaStream_t stream) {
  const int64_t n = args.m + args.n;
  if (n == 0) return;
  GRF_LAUNCH((score_offsets_kernel<T>), blocks_for(n, kLossThreads), kLossThreads, 0, stream, args);
}

template <typename Operand>
void make_losses(const ScoreRows<Operand>& args, cudaStream_t stream) {
  if (args.n_rows == 0) return;
  switch (args.options.loss) {
    case RankingLoss::cross_entropy:
      return launch_loss_rows<Operand, RankingLoss::cross_entropy>(args, stream);
    case RankingLoss::bpr_max:
      return launch_loss_rows<Operand, RankingLoss::bpr_max>(args, stream);
    case RankingLoss::top1:
      return launch_loss_rows<Operand, RankingLoss::top1>(args, stream);
    case RankingLoss::top1_max:
      return launch_loss_rows<Operand, RankingLoss::top1_max>(args, stream);
    case RankingLoss::bpr:
      return launch_loss_rows<Operand, RankingLoss::bpr>(args, stream);
  }
}

template void make_score_offsets(const ScoreOffsets<float>&, cudaStream_t);
template void make_score_offsets(const ScoreOffsets<double>&, cudaStream_t);
template void make_losses(const ScoreRows<float>&, cudaStream_t);
template void make_losses(const ScoreRows<double>&, cudaStream_t);
template void make_losses(const ScoreRows<uint16_t>&, cudaStream_t);

}  // namespace grf::cuda
