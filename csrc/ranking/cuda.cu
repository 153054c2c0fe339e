// The rank of each query's target by counting, and the k best items, from tiles of scores that torch multiplies.
// Specification: gru4rec_fast/ops/ranking.py.
#include "common/partition_point.h"
#include "common/simt.cuh"
#include "ranking/ranking.h"

namespace grf::cuda {

constexpr int kRankingThreads = 256;
constexpr int kBestThreads = 128;
constexpr int kBestEach = 4;  // columns that a thread looks at between two barriers
constexpr int kChunk = kBestThreads * kBestEach;
constexpr int kWaiting = 2 * kChunk;  // candidates in shared memory; a power of two

template <typename T>
__device__ __forceinline__ T score_of(const ScoreTile<T>& tile, int64_t query, int64_t column) {
  const T product = tile.products[query * tile.width + column];
  const T score = tile.bias == nullptr ? product : product + tile.bias[column];
  GRF_DEVICE_CHECK(score == score, "query: one has a NaN score; look for NaN or infinity in hidden, weight and bias");
  return score;
}

// Copies the targets' rows.
//
// Launch: one dimension, any number of blocks of any size; a thread takes numbers in strides of the grid. Counted
// bytes: every number read and written once.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads) gather_targets_kernel(TargetRows<T> rows) {
  for (int64_t i = global_thread(); i < rows.n * rows.width; i += all_threads()) {
    const int64_t query = quotient(i, rows.width), target = rows.targets[query];
    GRF_DEVICE_CHECK(target >= 0 && target < rows.n_catalogue, "targets: out of range, one is not in the catalogue");
    rows.rows[i] = rows.weight[target * rows.width + (i - query * rows.width)];
  }
}

// Launch: one dimension, a thread for each query, in strides of the grid.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads)
    take_own_scores_kernel(ScoreTile<T> tile, const int64_t* targets, T* own) {
  for (int64_t query = global_thread(); query < tile.n_queries; query += all_threads()) {
    const T product = tile.products[query * tile.width + query];
    own[query] = tile.bias == nullptr ? product : product + tile.bias[targets[query]];
  }
}

// Adds what a tile has to the counts of items above and beside each target.
//
// Launch: x: blocks that share a query's columns, y: queries; any multiple of 32 threads. Counted bytes: each score
// once. A warp adds its sums, which are whole numbers, by two atomics.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads) count_scores_kernel(ScoreTile<T> tile, TargetCounts<T> counts) {
  const int64_t query = blockIdx.y, target = counts.targets[query] - tile.first_item;
  const T own = counts.own[query];
  unsigned greater = 0, equal = 0;
  for (int64_t column = global_thread(); column < tile.n_items; column += all_threads()) {
    const T score = score_of(tile, query, column);
    if (column == target) continue;
    greater += score > own;
    equal += score == own;
  }
  for (int with = 16; with > 0; with /= 2) {
    greater += __shfl_xor_sync(kAllLanes, greater, with);
    equal += __shfl_xor_sync(kAllLanes, equal, with);
  }
  if (threadIdx.x % 32 != 0) return;
  if (greater > 0) atomicAdd(reinterpret_cast<unsigned long long*>(counts.greater + query), greater);
  if (equal > 0) atomicAdd(reinterpret_cast<unsigned long long*>(counts.equal + query), equal);
}

// A total order: no two items of a query are equal in it.
template <typename T>
__device__ __forceinline__ bool better(const Entry<T>& a, const Entry<T>& b) {
  return a.score > b.score || (a.score == b.score && a.item < b.item);
}

// How many of entries [n], best first, are better than one.
template <typename T>
__device__ __forceinline__ int64_t count_better(const Entry<T>* entries, int64_t n, const Entry<T>& than) {
  return partition_point(n, [&](int64_t i) { return better(entries[i], than); });
}

__device__ __forceinline__ bool holds(const int64_t* rising, int64_t n, int64_t item) {
  const int64_t begin = partition_point(n, [&](int64_t i) { return rising[i] < item; });
  return begin < n && rising[begin] == item;
}

// Sorts the first `n` of the waiting entries, best first, by a bitonic network; those behind them up to the next power
// of two are overwritten. All threads call it, and a barrier comes before and after.
template <typename T>
__device__ __forceinline__ void sort_waiting(Entry<T>* waiting, int n) {
  int size = 1;
  while (size < n) size *= 2;
  const T lowest = -std::numeric_limits<T>::infinity();
  for (int i = n + static_cast<int>(threadIdx.x); i < size; i += kBestThreads) waiting[i] = {lowest, Entry<T>::kNone};
  __syncthreads();
  for (int run = 2; run <= size; run *= 2) {
    for (int apart = run / 2; apart > 0; apart /= 2) {
      for (int i = static_cast<int>(threadIdx.x); i < size / 2; i += kBestThreads) {
        const int one = i / apart * 2 * apart + i % apart, other = one + apart;
        const Entry<T> a = waiting[one], b = waiting[other];
        if (better(b, a) == ((one & run) == 0)) waiting[one] = b, waiting[other] = a;
      }
      __syncthreads();
    }
  }
}

// Merges `n` waiting entries into the list `from` [k], as `to`; what falls behind the k-th is lost. Every entry's place
// is the number of those before it, in its own list and in the other.
template <typename T>
__device__ __forceinline__ void merge_waiting(Entry<T>* waiting, int n, const Entry<T>* from, Entry<T>* to, int64_t k) {
  sort_waiting(waiting, n);
  for (int64_t i = threadIdx.x; i < n; i += kBestThreads) {
    const int64_t place = i + count_better(from, k, waiting[i]);
    if (place < k) to[place] = waiting[i];
  }
  for (int64_t i = threadIdx.x; i < k; i += kBestThreads) {
    const int64_t place = i + count_better<T>(waiting, n, from[i]);
    if (place < k) to[place] = from[i];
  }
  __syncthreads();
}

// Offers a tile's items to the lists.
//
// Launch: x: segments of a query's columns, y: queries; kBestThreads threads. Counted bytes: each score once; what
// beats the k-th best so far, soon very little, waits in shared memory until that is nearly full, is sorted there and
// merged into the block's own list in global memory.
template <typename T>
__global__ void __launch_bounds__(kBestThreads, 1)  // 1: else ptxas spills to fit more blocks
    find_best_kernel(ScoreTile<T> tile, BestLists<T> best) {
  GRF_SHARED(waiting, Entry<T>[kWaiting]);
  GRF_SHARED(n_waiting, int);
  const int64_t query = blockIdx.y, segment = blockIdx.x, k = best.k;
  Entry<T>* const kept = best.lists[0] + (query * best.n_segments + segment) * k;
  Entry<T>* from = kept;
  Entry<T>* to = best.lists[1] + (query * best.n_segments + segment) * k;
  const int64_t* exclude = best.exclude + query * best.n_exclude;
  GRF_DEVICE_CHECK(best.n_exclude == 0 || (exclude[0] >= -1 && exclude[best.n_exclude - 1] < best.n_catalogue),
                   "exclude: out of range, an item is not in the catalogue and not the padding, -1");
  const T lowest = -std::numeric_limits<T>::infinity();
  if (best.fresh) {
    for (int64_t i = threadIdx.x; i < k; i += kBestThreads) kept[i] = {lowest, Entry<T>::kNone};
  }
  if (threadIdx.x == 0) n_waiting = 0;
  __syncthreads();

  const int64_t share = (tile.n_items - 1) / best.n_segments + 1;
  const int64_t begin = segment * share, end = min(begin + share, tile.n_items);
  Entry<T> last = kept[k - 1];  // of the list: what does not beat it cannot come in
  for (int64_t first = begin; first < end; first += kChunk) {
    T scores[kBestEach];
#pragma unroll
    for (int i = 0; i < kBestEach; ++i) {
      const int64_t column = first + i * kBestThreads + threadIdx.x;
      scores[i] = column < end ? score_of(tile, query, column) : lowest;
    }
#pragma unroll
    for (int i = 0; i < kBestEach; ++i) {
      const int64_t item = tile.first_item + first + i * kBestThreads + threadIdx.x;
      const Entry<T> entry{scores[i], static_cast<typename Entry<T>::Item>(item)};
      if (entry.score > lowest && better(entry, last) && !holds(exclude, best.n_exclude, entry.item)) {
        waiting[atomicAdd(&n_waiting, 1)] = entry;
      }
    }
    __syncthreads();
    const int n = n_waiting;
    __syncthreads();  // before it is counted up again
    if (n + kChunk <= kWaiting && first + kChunk < end) continue;
    if (n == 0) continue;
    merge_waiting(waiting, n, from, to, k);
    Entry<T>* const merged = to;
    to = from, from = merged;
    last = from[k - 1];
    if (threadIdx.x == 0) n_waiting = 0;
    __syncthreads();
  }
  if (from == kept) return;
  for (int64_t i = threadIdx.x; i < k; i += kBestThreads) kept[i] = from[i];
}

// Writes the k best of a query's segments.
//
// Launch: one dimension, any number of blocks of any size; a thread takes entries of the lists, in strides of the grid.
// An entry's place is the number of better ones, which the other segments' lists tell by bisection.
template <typename T>
__global__ void __launch_bounds__(kRankingThreads)
    merge_segments_kernel(BestLists<T> best, int64_t n_queries, T* scores, int64_t* items) {
  const int64_t k = best.k, per_query = best.n_segments * k;
  for (int64_t i = global_thread(); i < n_queries * per_query; i += all_threads()) {
    const Entry<T> entry = best.lists[0][i];
    if (entry.item == Entry<T>::kNone) continue;
    const int64_t query = quotient(i, per_query), segment = quotient(i - query * per_query, k);
    const Entry<T>* lists = best.lists[0] + query * per_query;
    int64_t place = 0;
    for (int64_t s = 0; s < best.n_segments; ++s) {
      place += s == segment ? i - query * per_query - segment * k : count_better(lists + s * k, k, entry);
    }
    if (place >= k) continue;
    scores[query * k + place] = entry.score;
    items[query * k + place] = entry.item;
  }
}

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
