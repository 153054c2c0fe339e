// CUDA kernels that rank targets or select the top k, from tiles of scores that torch computes by matrix products.
// Specification: gru4rec_fast/ops/ranking.py.
//
// Times in the comments are estimates for an H200 (4.8 TB/s), 512 queries and 43,000 items, float32. There are 6 tiles
// of [512, 8192] scores, 17 MB each; reading all scores, 88 MB, takes 18 us. A tile may still be in the L2 cache after
// its product, so reading it may be faster.
#include "common/partition_point.h"
#include "common/simt.cuh"
#include "ranking/ranking.h"

namespace grf::cuda {

constexpr int kRankingThreads = 256;
constexpr int kTopKThreads = 128;
constexpr int kColumnsPerThread = 4;  // columns that a thread of select_top_k_kernel reads between two barriers
constexpr int kChunk = kTopKThreads * kColumnsPerThread;  // columns that a block reads between two barriers
constexpr int kMaxCandidates = 2 * kChunk;                // in shared memory; must be a power of two

// Returns the score of a column's item for a query: product and bias.
template <typename T>
__device__ __forceinline__ T score_of(const ScoreTile<T>& tile, int64_t query, int64_t column) {
  const T product = tile.products[query * tile.width + column];
  const T score = tile.bias == nullptr ? product : product + tile.bias[column];
  GRF_DEVICE_CHECK(score == score, "query: a score is NaN; look for NaN or infinity in hidden, weight and bias");
  return score;
}

// Copies the targets' rows of `weight`.
//
// Launch: one dimension, any number of blocks of kRankingThreads; threads loop over elements. Bytes: every element is
// read and written once; 512 x 100 float32: 0.4 MB, 0.1 us. Bottleneck: the launch itself, a few us.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads) gather_targets_kernel(TargetRows<T> rows) {
  for (int64_t i = global_thread(); i < rows.n * rows.width; i += all_threads()) {
    const int64_t query = quotient(i, rows.width), target = rows.targets[query];
    GRF_DEVICE_CHECK(target >= 0 && target < rows.n_catalogue, "targets: a target is not an item of the catalogue");
    rows.rows[i] = rows.weight[target * rows.width + (i - query * rows.width)];
  }
}

// Writes the score of each query's target: the diagonal of the product of the queries with the targets' rows.
//
// Launch: one dimension, any number of blocks of kRankingThreads; threads loop over queries. Bytes: 8 to 32 per query.
// Bottleneck: the launch itself.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads)
    extract_target_scores_kernel(ScoreTile<T> tile, const int64_t* targets, T* target_scores) {
  for (int64_t query = global_thread(); query < tile.n_queries; query += all_threads()) {
    const T product = tile.products[query * tile.width + query];
    target_scores[query] = tile.bias == nullptr ? product : product + tile.bias[targets[query]];
  }
}

// For each query, adds the number of a tile's items that score higher than the target to counts.greater, and the number
// of other items that score exactly as high to counts.equal.
//
// Launch: in x, any number of blocks of kRankingThreads, whose threads loop over the columns of a query; in y, queries.
// A warp sums its counts, then adds them by two atomic operations. Counts are integers, so the order does not matter.
// Bytes: each score is read once: 17 MB per tile, 3.5 us. Bottleneck: these reads.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads) count_scores_kernel(ScoreTile<T> tile, TargetCounts<T> counts) {
  const int64_t query = blockIdx.y, target = counts.targets[query] - tile.first_item;
  const T target_score = counts.target_scores[query];
  unsigned greater = 0, equal = 0;
  for (int64_t column = global_thread(); column < tile.n_items; column += all_threads()) {
    const T score = score_of(tile, query, column);
    if (column == target) continue;
    greater += score > target_score;
    equal += score == target_score;
  }
  for (int offset = 16; offset > 0; offset /= 2) {
    greater += __shfl_xor_sync(kAllLanes, greater, offset);
    equal += __shfl_xor_sync(kAllLanes, equal, offset);
  }
  if (threadIdx.x % 32 != 0) return;
  if (greater > 0) atomicAdd(reinterpret_cast<unsigned long long*>(counts.greater + query), greater);
  if (equal > 0) atomicAdd(reinterpret_cast<unsigned long long*>(counts.equal + query), equal);
}

// Returns whether a is better than b. This is a total order: of two different items of a query, one is better.
template <typename T>
__device__ __forceinline__ bool better(const ScoredItem<T>& a, const ScoredItem<T>& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// Returns how many of items [n], which are sorted best first, are better than `item`.
template <typename T>
__device__ __forceinline__ int64_t count_better(const ScoredItem<T>* items, int64_t n, const ScoredItem<T>& item) {
  return partition_point(n, [&](int64_t i) { return better(items[i], item); });
}

__device__ __forceinline__ bool contains(const int64_t* sorted, int64_t n, int64_t item) {
  const int64_t index = partition_point(n, [&](int64_t i) { return sorted[i] < item; });
  return index < n && sorted[index] == item;
}

// Sorts n candidates, best first, by a bitonic network. Pads them to a power of two with {-inf, kNone}. Every thread of
// the block must call it. A barrier comes before and after the sort.
template <typename T>
__device__ __forceinline__ void sort_candidates(ScoredItem<T>* candidates, int n) {
  int size = 1;
  while (size < n) size *= 2;
  const ScoredItem<T> none{-std::numeric_limits<T>::infinity(), ScoredItem<T>::kNone};
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += kTopKThreads) candidates[i] = none;
  __syncthreads();
  for (int length = 2; length <= size; length *= 2) {
    for (int distance = length / 2; distance > 0; distance /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += kTopKThreads) {
        const int first = i / distance * 2 * distance + i % distance, second = first + distance;
        const ScoredItem<T> a = candidates[first], b = candidates[second];
        if (better(b, a) == ((first & length) == 0)) candidates[first] = b, candidates[second] = a;
      }
      __syncthreads();
    }
  }
}

// Writes the k best items among n candidates and `list` [k] to `merged` [k]. The position of an item in `merged` is the
// number of better items. This is the item's index among the sorted candidates (or in `list`) plus the number of better
// items in `list` (or among the candidates), which bisection finds.
template <typename T>
__device__ __forceinline__ void merge_candidates(ScoredItem<T>* candidates, int n, const ScoredItem<T>* list,
                                                 ScoredItem<T>* merged, int64_t k) {
  sort_candidates(candidates, n);
  for (int64_t i = threadIdx.x; i < n; i += kTopKThreads) {
    const int64_t position = i + count_better(list, k, candidates[i]);
    if (position < k) merged[position] = candidates[i];
  }
  for (int64_t i = threadIdx.x; i < k; i += kTopKThreads) {
    const int64_t position = i + count_better<T>(candidates, n, list[i]);
    if (position < k) merged[position] = list[i];
  }
  __syncthreads();
}

// Adds the items of a tile to the lists of the k best.
//
// Launch: in x, segments of a query's columns; in y, queries; kTopKThreads threads; static shared memory:
// kMaxCandidates ScoredItems (8 KB for float). Items whose scores exceed the k-th best so far become candidates in
// shared memory. When this memory is nearly full, or the segment ends, the candidates are sorted and merged into the
// block's list in global memory. Bytes: each score is read once: 17 MB per tile, 3.5 us. Bottleneck: these reads, since
// few items become candidates once the lists are full. In the first tile, and for large k, the bottleneck is sorting
// and merging. Hazard: a fast thread could append a candidate of the next chunk before a slow thread has read
// n_candidates. Then only one of the two threads would take the `continue`, and they would wait at different barriers.
// So a barrier follows the read.
template <typename T>
__global__ void __launch_bounds__(kTopKThreads, 1)  // without the 1, ptxas spills registers to fit more blocks
    select_top_k_kernel(ScoreTile<T> tile, TopKLists<T> lists) {
  GRF_SHARED(candidates, ScoredItem<T>[kMaxCandidates]);
  GRF_SHARED(n_candidates, int);
  const int64_t query = blockIdx.y, segment = blockIdx.x, k = lists.k;
  ScoredItem<T>* const result = lists.best + (query * lists.n_segments + segment) * k;
  ScoredItem<T>* list = result;
  ScoredItem<T>* merged = lists.scratch + (query * lists.n_segments + segment) * k;
  const int64_t* exclude = lists.exclude + query * lists.n_exclude;
  GRF_DEVICE_CHECK(lists.n_exclude == 0 || (exclude[0] >= -1 && exclude[lists.n_exclude - 1] < lists.n_catalogue),
                   "exclude: an element is neither an item of the catalogue nor the padding, -1");
  const T lowest = -std::numeric_limits<T>::infinity();
  if (lists.is_first_tile) {
    for (int64_t i = threadIdx.x; i < k; i += kTopKThreads) result[i] = {lowest, ScoredItem<T>::kNone};
  }
  if (threadIdx.x == 0) n_candidates = 0;
  __syncthreads();

  const int64_t segment_columns = (tile.n_items - 1) / lists.n_segments + 1;
  const int64_t begin = segment * segment_columns, end = min(begin + segment_columns, tile.n_items);
  ScoredItem<T> worst = result[k - 1];  // the k-th best item so far
  for (int64_t first = begin; first < end; first += kChunk) {
    T scores[kColumnsPerThread];
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      const int64_t column = first + i * kTopKThreads + threadIdx.x;
      scores[i] = column < end ? score_of(tile, query, column) : lowest;
    }
#pragma unroll
    for (int i = 0; i < kColumnsPerThread; ++i) {
      const int64_t item = tile.first_item + first + i * kTopKThreads + threadIdx.x;
      const ScoredItem<T> candidate{scores[i], static_cast<typename ScoredItem<T>::Item>(item)};
      if (candidate.score > lowest && better(candidate, worst) && !contains(exclude, lists.n_exclude, candidate.item)) {
        candidates[atomicAdd(&n_candidates, 1)] = candidate;
      }
    }
    __syncthreads();
    const int n = n_candidates;
    __syncthreads();
    if (n + kChunk <= kMaxCandidates && first + kChunk < end) continue;
    if (n == 0) continue;
    merge_candidates(candidates, n, list, merged, k);
    ScoredItem<T>* const swapped = merged;
    merged = list, list = swapped;
    worst = list[k - 1];
    if (threadIdx.x == 0) n_candidates = 0;
    __syncthreads();
  }
  if (list == result) return;
  for (int64_t i = threadIdx.x; i < k; i += kTopKThreads) result[i] = list[i];
}

// Writes the k best items of each query, from the lists of its segments.
//
// Launch: one dimension, any number of blocks of kRankingThreads; threads loop over the items of the lists. The
// position of an item in the result is the number of better items. This is the item's index in its own list plus the
// number of better items in each other list, which bisection finds. Bytes: 8 per item (float), and what the bisections
// read from the cache; 512 queries x 2 segments x k = 20: 0.2 MB. Bottleneck: the launch itself.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads)
    merge_segments_kernel(TopKLists<T> lists, int64_t n_queries, T* scores, int64_t* items) {
  const int64_t k = lists.k, items_per_query = lists.n_segments * k;
  for (int64_t i = global_thread(); i < n_queries * items_per_query; i += all_threads()) {
    const ScoredItem<T> item = lists.best[i];
    if (item.item == ScoredItem<T>::kNone) continue;
    const int64_t query = quotient(i, items_per_query), segment = quotient(i - query * items_per_query, k);
    const ScoredItem<T>* query_lists = lists.best + query * items_per_query;
    int64_t position = 0;
    for (int64_t s = 0; s < lists.n_segments; ++s) {
      position += s == segment ? i - query * items_per_query - segment * k : count_better(query_lists + s * k, k, item);
    }
    if (position >= k) continue;
    scores[query * k + position] = item.score;
    items[query * k + position] = item.item;
  }
}

template <typename T>
void gather_targets(const TargetRows<T>& rows, cudaStream_t stream) {
  if (rows.n * rows.width == 0) return;
  const unsigned blocks = blocks_for(rows.n * rows.width, kRankingThreads);
  GRF_LAUNCH((gather_targets_kernel<T>), blocks, kRankingThreads, 0, stream, rows);
}

template <typename T>
void extract_target_scores(const ScoreTile<T>& tile, const int64_t* targets, T* target_scores, cudaStream_t stream) {
  const unsigned blocks = blocks_for(tile.n_queries, kRankingThreads);
  GRF_LAUNCH((extract_target_scores_kernel<T>), blocks, kRankingThreads, 0, stream, tile, targets, target_scores);
}

template <typename T>
void count_scores(const ScoreTile<T>& tile, const TargetCounts<T>& counts, cudaStream_t stream) {
  constexpr int64_t kScoresPerThread = 8;
  const dim3 grid(blocks_for(tile.n_items, kScoresPerThread * kRankingThreads), static_cast<unsigned>(tile.n_queries));
  GRF_LAUNCH((count_scores_kernel<T>), grid, kRankingThreads, 0, stream, tile, counts);
}

template <typename T>
void select_top_k(const ScoreTile<T>& tile, const TopKLists<T>& lists, cudaStream_t stream) {
  const dim3 grid(static_cast<unsigned>(lists.n_segments), static_cast<unsigned>(tile.n_queries));
  GRF_LAUNCH((select_top_k_kernel<T>), grid, kTopKThreads, 0, stream, tile, lists);
}

template <typename T>
void merge_segments(const TopKLists<T>& lists, int64_t n_queries, T* scores, int64_t* items, cudaStream_t stream) {
  const unsigned blocks = blocks_for(n_queries * lists.n_segments * lists.k, kRankingThreads);
  GRF_LAUNCH((merge_segments_kernel<T>), blocks, kRankingThreads, 0, stream, lists, n_queries, scores, items);
}

#define GRF_INSTANTIATE(T)                                                                    \
  template void gather_targets(const TargetRows<T>&, cudaStream_t);                           \
  template void extract_target_scores(const ScoreTile<T>&, const int64_t*, T*, cudaStream_t); \
  template void count_scores(const ScoreTile<T>&, const TargetCounts<T>&, cudaStream_t);      \
  template void select_top_k(const ScoreTile<T>&, const TopKLists<T>&, cudaStream_t);         \
  template void merge_segments(const TopKLists<T>&, int64_t, T*, int64_t*, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
