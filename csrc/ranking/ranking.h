// Ranks of targets, and top-k, on raw pointers: the functions of the CPU implementation, and functions that launch the
// CUDA kernels. A query is a hidden state; its target is an item. Specification: gru4rec_fast/ops/ranking.py.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// Queries and the catalogue. The score of item j for query q is hidden[q] @ weight[j] + bias[j].
template <typename T>
struct RankingArguments {
  const T *hidden, *weight;  // [n_queries, width], [n_items, width]
  const T* bias;             // [n_items], or null
  int64_t n_queries, n_items, width;
};

// Writes the number of items that score higher than query q's target to greater[q], and the number of other items that
// score exactly as high to equal[q]. On entry, all elements of `greater` and `equal` must be zero.
template <typename T>
void rank_targets(const RankingArguments<T>& args, const int64_t* targets, int64_t* greater, int64_t* equal);

// Writes the k best items of each query and their scores, best first. If fewer than k items are left, the rest of a row
// is item -1 and score -inf. Each row of exclude [n_queries, n_exclude] must be in increasing order.
template <typename T>
void select_top_k(const RankingArguments<T>& args, int64_t k, const int64_t* exclude, int64_t n_exclude, T* scores,
                  int64_t* items);

namespace cuda {

// Maximum numbers of scores and of queries of a tile (see ScoreTile); alignment in bytes of the memory of `weight`;
// minimum number of columns of a segment (see TopKLists). In the emulator they are small, so that the small problems of
// tests have several tiles and segments.
#ifdef GRF_EMULATED
constexpr int64_t kTileScores = 1 << 12;
constexpr int64_t kTileQueries = 32;
constexpr uint64_t kRowAlignment = 64;  // torch's CPU allocator aligns to 64 bytes
constexpr int64_t kSegmentColumns = 50;
#else
constexpr int64_t kTileScores = 1 << 22;  // 16 MB of float32, which fit in the L2 cache
constexpr int64_t kTileQueries = 512;
constexpr uint64_t kRowAlignment = 256;  // the largest that cuBLAS distinguishes
constexpr int64_t kSegmentColumns = 1024;
#endif

// A tile: the products of some queries and `width` consecutive items, without bias. Only the first n_items columns are
// items; the others are padding.
template <typename T>
struct ScoreTile {
  const T* products;  // [n_queries, width]
  const T* bias;      // [n_items], biases of the tile's items; null: no bias
  int64_t n_queries, n_items, width;
  int64_t first_item;  // the item of column 0
};

// The rows of `weight` that belong to the targets.
template <typename T>
struct TargetRows {
  const T* weight;         // [n_catalogue, width]
  const int64_t* targets;  // [n]
  int64_t n_catalogue, n, width;
  T* rows;  // [n, width], written
};

// For each query, the number of items that score higher than the target, and of other items that score exactly as high.
template <typename T>
struct TargetCounts {
  const int64_t* targets;  // [n_queries]
  const T* target_scores;  // [n_queries]
  int64_t* greater;        // [n_queries], a kernel adds to it
  int64_t* equal;          // [n_queries], a kernel adds to it
};

// An item and its score in 8 bytes (float) or 16 bytes (double). Item kNone means that there is no item.
template <typename T>
struct ScoredItem {
  using Item = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr Item kNone = std::numeric_limits<Item>::max();
  T score;
  Item item;
};
constexpr int64_t kMaxItems = ScoredItem<float>::kNone;  // a catalogue must have fewer items

// The k best items of each query among the tiles processed so far. The columns of a tile are divided into segments.
// There is a list for each query and segment, which one block updates.
template <typename T>
struct TopKLists {
  const int64_t* exclude;  // [n_queries, n_exclude], increasing; -1: padding
  int64_t n_exclude, n_catalogue;
  int64_t n_segments, k;
  bool is_first_tile;  // `best` is uninitialized before the first tile
  // [n_queries, n_segments, k] each. `best` holds the lists, best item first, padded with {-inf, kNone}; `scratch` is
  // workspace.
  ScoredItem<T>*best, *scratch;
};

// Copies the targets' rows of `weight`.
template <typename T>
void gather_targets(const TargetRows<T>& rows, cudaStream_t stream);

// Writes the score of each query's target. `tile` is the product of the queries and the gathered rows of the targets,
// so the score of query q's target is in column q. tile.bias is [n_catalogue] here, or null.
template <typename T>
void extract_target_scores(const ScoreTile<T>& tile, const int64_t* targets, T* target_scores, cudaStream_t stream);

// Adds the counts of a tile's items.
template <typename T>
void count_scores(const ScoreTile<T>& tile, const TargetCounts<T>& counts, cudaStream_t stream);

// Adds the items of a tile to the lists.
template <typename T>
void select_top_k(const ScoreTile<T>& tile, const TopKLists<T>& lists, cudaStream_t stream);

// Writes the k best items of each query, from the lists of all segments, to scores and items [n_queries, k]. On entry,
// `scores` must hold -inf and `items` -1.
template <typename T>
void merge_segments(const TopKLists<T>& lists, int64_t n_queries, T* scores, int64_t* items, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
