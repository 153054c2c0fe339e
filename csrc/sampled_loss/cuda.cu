#include "sampled_loss/cuda.cuh"

namespace grf::cuda {
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
