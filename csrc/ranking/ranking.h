// Ranks of targets, and top-k, on raw pointers: the CPU's functions, and the launchers of the CUDA kernels.
// Specification: gru4rec_fast/ops/ranking.py.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/stream.h"

namespace grf {

// Queries and the catalogue. The score of item j for query q is hidden[q] @ weight[j] + bias[j].
template <typename T>
struct RankingArguments {
  const T *hidden, *weight;  // [n_queries, width], [n_items, width]
  const T* bias;             // [n_items], or null
  int64_t n_queries, n_items, width;
};

// Adds to greater[q] and equal[q], which are zero, the number of items other than the target that score higher than
// query q's target, and exactly as high.
template <typename T>
void rank_targets(const RankingArguments<T>& args, const int64_t* targets, int64_t* greater, int64_t* equal);

// Writes the k best items of each query, best first; where fewer are left, score -inf and item -1. Each row of exclude
// [n_queries, n_exclude] is in increasing order.
template <typename T>
void select_top_k(const RankingArguments<T>& args, int64_t k, const int64_t* exclude, int64_t n_exclude, T* scores,
                  int64_t* items);

namespace cuda {

// Maximum number of scores in memory, maximum number of queries they belong to, and minimum number of columns of a
// segment (see TopKLists). The emulation has small ones, so that small tests have several tiles in each direction.
#ifdef GRF_EMULATED
constexpr int64_t kTileScores = 1 << 12;
constexpr int64_t kTileQueries = 32;
constexpr int64_t kSegmentColumns = 50;
#else
constexpr int64_t kTileScores = 1 << 22;  // 16 MB of float32, which fit in the L2 cache
constexpr int64_t kTileQueries = 512;
constexpr int64_t kSegmentColumns = 1024;
#endif

// A tile: the matrix products of some queries with `width` consecutive items, without bias. Columns from n_items on are
// padding.
template <typename T>
struct ScoreTile {
  const T* products;  // [n_queries, width]
  const T* bias;      // [n_items] of the tile's items; null: none
  int64_t n_queries, n_items, width;
  int64_t first_item;
};

// The rows of `weight` that belong to the targets.
template <typename T>
struct TargetRows {
  const T* weight;         // [n_catalogue, width]
  const int64_t* targets;  // [n]
  int64_t n_catalogue, n, width;
  T* rows;  // [n, width], written
};

template <typename T>
struct TargetCounts {
  const int64_t* targets;  // [n_queries]
  const T* target_scores;  // [n_queries]
  int64_t* greater;        // [n_queries], added to
  int64_t* equal;
};

// An item and its score in 8 bytes (float) or 16 (double). Item kNone: no item.
template <typename T>
struct ScoredItem {
  using Item = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr Item kNone = std::numeric_limits<Item>::max();
  T score;
  Item item;
};
constexpr int64_t kMaxItems = ScoredItem<float>::kNone;  // in a catalogue

// The k best items of each query among the tiles seen so far. The columns of a tile are divided into segments; each
// segment of a query has a list of its own, which one block updates.
template <typename T>
struct TopKLists {
  const int64_t* exclude;  // [n_queries, n_exclude], increasing; -1: padding
  int64_t n_exclude, n_catalogue;
  int64_t n_segments, k;
  bool is_first_tile;  // `best` is uninitialized
  // [n_queries, n_segments, k] each. `best` is sorted, best first, and padded with {-inf, kNone}.
  ScoredItem<T>*best, *scratch;
};

// Copies the target rows.
template <typename T>
void gather_targets(const TargetRows<T>& rows, cudaStream_t stream);

// Writes the target's score of each query q, which is column q of a tile of gathered rows. tile.bias is [n_catalogue]
// here, or null.
template <typename T>
void extract_target_scores(const ScoreTile<T>& tile, const int64_t* targets, T* target_scores, cudaStream_t stream);

// Adds the counts of a tile.
template <typename T>
void count_scores(const ScoreTile<T>& tile, const TargetCounts<T>& counts, cudaStream_t stream);

// Adds the items of a tile to the lists.
template <typename T>
void select_top_k(const ScoreTile<T>& tile, const TopKLists<T>& lists, cudaStream_t stream);

// Writes the k best items of all segments to scores and items [n_queries, k], which hold -inf and -1.
template <typename T>
void merge_segments(const TopKLists<T>& lists, int64_t n_queries, T* scores, int64_t* items, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
