#include "cuda/sampled_loss.cuh"

namespace grf::cuda {
namespace {

template <typename T, RankingLoss kLoss>
void launch(const ScoreRows<T>& rows, cudaStream_t stream) {
  const int64_t bytes = rows.columns() * static_cast<int64_t>(sizeof(T));
  const bool in_shared = bytes > 0 && bytes <= kSharedRowBytes;
  const size_t shared = in_shared ? static_cast<size_t>(bytes) : sizeof(T);  // a kernel that names it has to get some
  GRF_LAUNCH((loss_rows_kernel<T, kLoss>), blocks_for(rows.n_rows, 1), kLossThreads, shared, stream, rows, in_shared);
}

}  // namespace

template <typename T>
void make_score_offsets(const ScoreOffsets<T>& columns, cudaStream_t stream) {
  const int64_t n = columns.m + columns.n;
  if (n == 0) return;
  GRF_LAUNCH((score_offsets_kernel<T>), blocks_for(n, kLossThreads), kLossThreads, 0, stream, columns);
}

template <typename T>
void make_losses(const ScoreRows<T>& rows, cudaStream_t stream) {
  if (rows.n_rows == 0) return;
  switch (rows.loss) {
    case RankingLoss::cross_entropy:
      return launch<T, RankingLoss::cross_entropy>(rows, stream);
    case RankingLoss::bpr_max:
      return launch<T, RankingLoss::bpr_max>(rows, stream);
    case RankingLoss::top1:
      return launch<T, RankingLoss::top1>(rows, stream);
    case RankingLoss::top1_max:
      return launch<T, RankingLoss::top1_max>(rows, stream);
    case RankingLoss::bpr:
      return launch<T, RankingLoss::bpr>(rows, stream);
  }
}

#define GRF_INSTANTIATE(T)                                                   \
  template void make_score_offsets<T>(const ScoreOffsets<T>&, cudaStream_t); \
  template void make_losses<T>(const ScoreRows<T>&, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
