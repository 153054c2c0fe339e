// Rows of scores turned into their losses and gradients. Specification: gru4rec_fast/ops/sampled_loss.py and
// sampled_loss_gradients.py; the losses themselves: sampled_loss/row_losses.cuh.
#include "common/simt.cuh"
#include "sampled_loss/row_losses.cuh"
#include "sampled_loss/sampled_loss.h"

namespace grf::cuda {

// offsets [M + N].
//
// Launch: one dimension, any number of blocks of any size; threads take columns in strides of the grid. Of each column
// two numbers and a flag are read, and one number written.
template <typename T>
__global__ void __launch_bounds__(kLossThreads) score_offsets_kernel(ScoreOffsets<T> p) {
  for (int64_t j = global_thread(); j < p.m + p.n; j += all_threads()) {
    const T bias = p.bias == nullptr ? T{0} : p.bias[j], log_q = p.log_q == nullptr ? T{0} : p.log_q[j];
    const bool dead = p.in_batch && p.live != nullptr && j < p.m && !p.live[j];
    p.offsets[j] = dead ? -static_cast<T>(INFINITY) : bias - log_q;
  }
}

// Each thread's sums merged, in an order that is a function of the block's size alone.
template <typename Sums>
__device__ __forceinline__ Sums sums_of_block(Sums mine) {
  GRF_SHARED(of_warps, Sums[kLossThreads / 32]);
  for (int with = 16; with > 0; with /= 2) mine.merge(mine.shuffled(with));
  __syncthreads();  // those of the call before have been read
  if (threadIdx.x % 32 == 0) of_warps[threadIdx.x / 32] = mine;
  __syncthreads();
  Sums all = of_warps[0];
  for (int warp = 1; warp < static_cast<int>(blockDim.x / 32); ++warp) all.merge(of_warps[warp]);
  return all;
}

template <typename T>
__device__ __forceinline__ T activate(T y, T elu) {
  return elu == 0 || y > 0 ? y : elu * expm1(y);
}

// The product of a row with its own target.
template <typename Operand>
__device__ __forceinline__ typename Stored<Operand>::Sum own_product(const ScoreRows<Operand>& p, int64_t row) {
  using Number = Stored<Operand>;
  RowSums<typename Number::Sum, 0, 0> sums;
  sums.clear();
  for (int64_t k = threadIdx.x; k < p.width; k += blockDim.x) {
    sums.of[0] += Number::widen(p.hidden[row * p.width + k]) * Number::widen(p.rows[row * p.width + k]);
  }
  return sums_of_block(sums).of[0];
}

// The gradients that run through a row's own target where this is no column of the products.
template <typename Operand>
__device__ __forceinline__ void write_own_gradients(const ScoreRows<Operand>& p, int64_t row, Operand of_score) {
  using Number = Stored<Operand>;
  const typename Number::Sum grad = Number::widen(of_score);
  for (int64_t k = row * p.width + threadIdx.x; k < (row + 1) * p.width; k += blockDim.x) {
    p.grad_hidden[k] = grad * Number::widen(p.rows[k]);
    p.grad_rows[k] = grad * Number::widen(p.hidden[k]);
  }
  if (threadIdx.x == 0) p.grad_bias[row] = grad;
}

// Blocks that share the registers: more threads than this and, on some GPU, some loss spills.
template <typename T>
constexpr int kBlocksAtOnce = sizeof(T) == 4 ? 4 : 2;

// Row `row` of `hidden`: from its products, in `scores`, their gradients. x: room for a row, or `scores` itself.
template <typename Operand, RankingLoss kLoss, typename T>
__device__ __forceinline__ void make_loss(const ScoreRows<Operand>& p, int64_t row, T* scores, Operand* grads, T* x) {
  using Number = Stored<Operand>;
  const T unseen = -static_cast<T>(INFINITY);
  const int64_t columns = p.columns(), first = p.first_column(), own_column = p.in_batch ? row : -1;
  const int64_t targets = p.in_batch ? p.m : 0;
  const auto offset = [&](int64_t j) { return p.offsets == nullptr ? T{0} : p.offsets[j]; };
  const auto count = [&](int64_t j) { return p.count == nullptr || j < targets ? T{1} : p.count[j - targets]; };
  if (p.live != nullptr && !p.live[row]) {
    for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) grads[j] = Operand{0};
    if (!p.in_batch) write_own_gradients(p, row, Operand{0});
    if (threadIdx.x == 0) p.losses[row] = 0;
    return;
  }
  const T elu = kLoss == RankingLoss::bpr_max ? p.options.elu : T{0};
  const T own = activate((p.in_batch ? scores[row] : own_product(p, row)) + offset(row), elu);
  using Loss = RowLoss<T, kLoss>;
  typename Loss::Sums sums;
  sums.clear();
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
    if (j == own_column) continue;
    const T shift = offset(first + j), y = scores[j] + shift;
    const bool hit = p.ids != nullptr && p.ids[first + j] == p.ids[row];
    const T value = hit || shift == unseen || y == unseen ? unseen : activate(y, elu);
    x[j] = value;
    if (value == unseen) continue;
    sums.of[0] += count(j);
    Loss::add(sums, value, count(j), own);
  }
  const Loss loss(sums_of_block(sums), own, p.options);
  for (int64_t j = threadIdx.x; j < columns; j += blockDim.x) {
    if (j == own_column) continue;
    grads[j] = Number::narrow(x[j] == unseen ? T{0} : loss.gradient(x[j], count(j)));
  }
  if (!p.in_batch) write_own_gradients(p, row, Number::narrow(loss.grad_own));
  if (threadIdx.x != 0) return;
  if (p.in_batch) grads[row] = Number::narrow(loss.grad_own);
  p.losses[row] = loss.loss * p.options.scale;
}

// Launch: x over the chunk's rows, any number of blocks of a multiple of 32 threads up to kLossThreads, which take rows
// in strides of the grid; shared memory for one row of columns, or none. A row of scores is read once and its gradients
// are written once; where the row is not in shared memory, it is written and read once more between these. Its columns'
// offsets, counts and ids, the same for all rows, come from caches. In the padded form two rows of H numbers are read
// and two written besides.
template <typename Operand, RankingLoss kLoss>
__global__ void __launch_bounds__(kLossThreads, kBlocksAtOnce<typename Stored<Operand>::Sum>)
    loss_rows_kernel(ScoreRows<Operand> p, bool row_in_shared) {
  using T = typename Stored<Operand>::Sum;
  GRF_DYNAMIC_SHARED(room, T);
  for (int64_t i = blockIdx.x; i < p.n_rows; i += gridDim.x) {
    T* const scores = p.scores + i * p.stride;
    make_loss<Operand, kLoss>(p, p.first + i, scores, p.grads + i * p.stride, row_in_shared ? room : scores);
  }
}

namespace {

template <typename Operand, RankingLoss kLoss>
void launch(const ScoreRows<Operand>& rows, cudaStream_t stream) {
  using T = typename Stored<Operand>::Sum;
  const int64_t bytes = rows.columns() * static_cast<int64_t>(sizeof(T));
  const bool in_shared = bytes > 0 && bytes <= kSharedRowBytes;
  const size_t shared = in_shared ? static_cast<size_t>(bytes) : sizeof(T);  // a kernel that names it has to get some
  GRF_LAUNCH((loss_rows_kernel<Operand, kLoss>), blocks_for(rows.n_rows, 1), kLossThreads, shared, stream, rows,
             in_shared);
}

}  // namespace

template <typename T>
void make_score_offsets(const ScoreOffsets<T>& columns, cudaStream_t stream) {
  const int64_t n = columns.m + columns.n;
  if (n == 0) return;
  GRF_LAUNCH((score_offsets_kernel<T>), blocks_for(n, kLossThreads), kLossThreads, 0, stream, columns);
}

template <typename Operand>
void make_losses(const ScoreRows<Operand>& rows, cudaStream_t stream) {
  if (rows.n_rows == 0) return;
  switch (rows.options.loss) {
    case RankingLoss::cross_entropy:
      return launch<Operand, RankingLoss::cross_entropy>(rows, stream);
    case RankingLoss::bpr_max:
      return launch<Operand, RankingLoss::bpr_max>(rows, stream);
    case RankingLoss::top1:
      return launch<Operand, RankingLoss::top1>(rows, stream);
    case RankingLoss::top1_max:
      return launch<Operand, RankingLoss::top1_max>(rows, stream);
    case RankingLoss::bpr:
      return launch<Operand, RankingLoss::bpr>(rows, stream);
  }
}

template void make_score_offsets(const ScoreOffsets<float>&, cudaStream_t);
template void make_score_offsets(const ScoreOffsets<double>&, cudaStream_t);
template void make_losses(const ScoreRows<float>&, cudaStream_t);
template void make_losses(const ScoreRows<double>&, cudaStream_t);
template void make_losses(const ScoreRows<uint16_t>&, cudaStream_t);

}  // namespace grf::cuda
