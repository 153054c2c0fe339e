// The ranking by counting and the k best items, on raw pointers: the CPU's functions, and the launchers of the CUDA
// kernels. Specification: gru4rec_fast/ops/ranking.py.
#pragma once

#include <cstdint>
#include <limits>
#include <type_traits>

#include "common/stream.h"

namespace grf {

// Queries, and the catalogue that they are scored against.
template <typename T>
struct Catalogue {
  const T *hidden, *weight;  // [n_queries, width], [n_items, width]
  const T* bias;             // [n_items], or null
  int64_t n_queries, n_items, width;
};

// How many items score more than each query's target, and as much, without the target itself; added to zeros.
template <typename T>
void count_targets(const Catalogue<T>& catalogue, const int64_t* targets, int64_t* greater, int64_t* equal);

// The k best items of each query, best first, then -inf and -1. exclude [n_queries, n_exclude] rises.
template <typename T>
void find_best(const Catalogue<T>& catalogue, int64_t k, const int64_t* exclude, int64_t n_exclude, T* scores,
               int64_t* items);

namespace cuda {

// Scores held at a time, and of how many queries at most. The emulation's are small, so that small problems have
// several tiles in each direction.
#ifdef GRF_EMULATED
constexpr int64_t kTileScores = 1 << 12;
constexpr int64_t kTileQueries = 32;
constexpr int64_t kSegmentColumns = 50;
#else
constexpr int64_t kTileScores = 1 << 22;  // which, in float32, a second-level cache has room for
constexpr int64_t kTileQueries = 512;
constexpr int64_t kSegmentColumns = 1024;  // of a tile at least, for a block of their own
#endif

// A tile of products, queries x items; bias is not added yet, and columns from n_items on mean nothing.
template <typename T>
struct ScoreTile {
  const T* products;  // [n_queries, width]
  const T* bias;      // [n_items], of these items, or null
  int64_t n_queries, n_items, width;
  int64_t first_item;
};

// The rows of the targets, to be multiplied as the tiles of the catalogue are.
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
  const T* own;            // [n_queries], the targets' scores
  int64_t* greater;        // [n_queries], added to
  int64_t* equal;
};

// A scored item: 8 bytes, or 16, and none that mean nothing.
template <typename T>
struct Entry {
  using Item = std::conditional_t<sizeof(T) == 4, int32_t, int64_t>;
  static constexpr Item kNone = std::numeric_limits<Item>::max();
  T score;
  Item item;
};
constexpr int64_t kMostItems = Entry<float>::kNone;  // of a catalogue

// The k best of each query among the items seen so far, kept apart for `n_segments` parts of its row.
template <typename T>
struct BestLists {
  const int64_t* exclude;  // [n_queries, n_exclude], rising; -1: none
  int64_t n_exclude, n_catalogue;
  int64_t n_segments, k;
  bool fresh;          // nothing was seen yet, and lists[0] is not to be read
  Entry<T>* lists[2];  // [n_queries, n_segments, k] each, best first, then {-inf, kNone}; lists[0] is kept
};

template <typename T>
void gather_targets(const TargetRows<T>& rows, cudaStream_t stream);

// own[q]: the score of query q's target, which is column q of products with gathered rows; bias: [n_catalogue] or null.
template <typename T>
void take_own_scores(const ScoreTile<T>& tile, const int64_t* targets, T* own, cudaStream_t stream);

template <typename T>
void count_scores(const ScoreTile<T>& tile, const TargetCounts<T>& counts, cudaStream_t stream);

template <typename T>
void find_best(const ScoreTile<T>& tile, const BestLists<T>& best, cudaStream_t stream);

// The k best of all segments into scores and items [n_queries, k], where -inf and -1 stand already.
template <typename T>
void merge_segments(const BestLists<T>& best, int64_t n_queries, T* scores, int64_t* items, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
