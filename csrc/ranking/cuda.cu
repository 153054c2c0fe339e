#include "ranking/cuda.cuh"

namespace grf::cuda {

template <typename T>
void gather_targets(const TargetRows<T>& rows, cudaStream_t stream) {
  if (rows.n * rows.width == 0) return;
  const unsigned blocks = blocks_for(rows.n * rows.width, kRankingThreads);
  GRF_LAUNCH((gather_targets_kernel<T>), blocks, kRankingThreads, 0, stream, rows);
}

template <typename T>
void take_own_scores(const ScoreTile<T>& tile, const int64_t* targets, T* own, cudaStream_t stream) {
  const unsigned blocks = blocks_for(tile.n_queries, kRankingThreads);
  GRF_LAUNCH((take_own_scores_kernel<T>), blocks, kRankingThreads, 0, stream, tile, targets, own);
}

template <typename T>
void count_scores(const ScoreTile<T>& tile, const TargetCounts<T>& counts, cudaStream_t stream) {
  constexpr int64_t kEach = 8;  // scores of a thread
  const dim3 grid(blocks_for(tile.n_items, kEach * kRankingThreads), static_cast<unsigned>(tile.n_queries));
  GRF_LAUNCH((count_scores_kernel<T>), grid, kRankingThreads, 0, stream, tile, counts);
}

template <typename T>
void find_best(const ScoreTile<T>& tile, const BestLists<T>& best, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(best.n_segments), static_cast<unsigned>(tile.n_queries));
  GRF_LAUNCH((find_best_kernel<T>), grid, kBestThreads, 0, stream, tile, best);
}

template <typename T>
void merge_segments(const BestLists<T>& best, int64_t n_queries, T* scores, int64_t* items, cudaStream_t stream) {
  const unsigned blocks = blocks_for(n_queries * best.n_segments * best.k, kRankingThreads);
  GRF_LAUNCH((merge_segments_kernel<T>), blocks, kRankingThreads, 0, stream, best, n_queries, scores, items);
}

#define GRF_INSTANTIATE(T)                                                               \
  template void gather_targets(const TargetRows<T>&, cudaStream_t);                      \
  template void take_own_scores(const ScoreTile<T>&, const int64_t*, T*, cudaStream_t);  \
  template void count_scores(const ScoreTile<T>&, const TargetCounts<T>&, cudaStream_t); \
  template void find_best(const ScoreTile<T>&, const BestLists<T>&, cudaStream_t);       \
  template void merge_segments(const BestLists<T>&, int64_t, T*, int64_t*, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
