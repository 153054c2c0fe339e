// Ranks of targets and top-k on CUDA. Specification: gru4rec_fast/ops/ranking.py.
//
// torch multiplies some queries by some rows of the catalogue; the product is a tile of scores. All tiles use the same
// memory. While a tile is in the L2 cache, kernels count the scores or select the top k.
//
// Hazard: BLAS may sum in different orders if matrices have different shapes. A target's score would then differ in the
// last bits between two products. So all products of one group of queries have the same shape and strides: the last
// tile is padded, and the targets' scores come from a product of the same shape. BLAS also chooses by the alignment of
// the matrices. So each tile starts at a multiple of kRowAlignment bytes, as the padded rows do.
#include <ATen/Dispatch.h>
#include <ATen/ops/clone.h>
#include <ATen/ops/empty.h>
#include <ATen/ops/mm.h>
#include <ATen/ops/zeros.h>

#include <algorithm>
#include <limits>

#include "common/device.h"
#include "common/operator.h"
#include "ranking/arguments.h"

namespace grf::cuda {
namespace {

using at::Tensor;

// The queries, the catalogue divided into tiles, and the memory that all tiles use.
struct TiledCatalogue {
  at::Device device;
  Tensor hidden, weight, bias;
  int64_t n_queries, n_items, tile_queries, tile_items;
  Tensor products;     // [tile_queries * tile_items]
  Tensor padded_rows;  // [tile_items, width]: the padded rows of the targets or of the last tile

  TiledCatalogue(const RankingTensors& tensors, int64_t max_tile_queries)
      : device(tensors.hidden.device()),
        hidden(tensors.hidden),
        weight(is_aligned(tensors.weight) ? tensors.weight : tensors.weight.clone()),
        bias(tensors.bias),
        n_queries(hidden.size(0)),
        n_items(weight.size(0)) {
    const int64_t width = weight.size(1);
    TORCH_CHECK_VALUE(n_items < kMaxItems, "weight has ", n_items, " rows; top_k and target_rank allow fewer than ",
                      kMaxItems);
    tile_queries = std::max<int64_t>(std::min(n_queries, max_tile_queries), 1);
    constexpr int64_t kMultiple = 64;  // 64 rows of any width take a multiple of kRowAlignment bytes
    const int64_t max_tile_items = kTileScores / tile_queries / kMultiple * kMultiple;
    // At least tile_queries, because padded_rows must hold the row of each query's target.
    tile_items = std::max(std::min(max_tile_items, n_items), tile_queries);
    products = at::empty({tile_queries * tile_items}, hidden.options());
    padded_rows = at::zeros({tile_items, width}, hidden.options());
  }

  static bool is_aligned(const Tensor& rows) {
    return reinterpret_cast<uintptr_t>(rows.const_data_ptr()) % kRowAlignment == 0;
  }

  // Returns the tile of queries [first, first + n) and `rows` [tile_items, width], which start with item first_item. If
  // `rows` are those of targets, first_item must be 0: extract_target_scores needs the biases of all items.
  template <typename T>
  ScoreTile<T> multiply(int64_t first, int64_t n, const Tensor& rows, int64_t first_item) const {
    Tensor out = products.narrow(0, 0, n * tile_items).view({n, tile_items});
    at::mm_out(out, hidden.narrow(0, first, n), rows.t());
    const T* biases = bias.defined() ? bias.const_data_ptr<T>() + first_item : nullptr;
    return {.products = out.const_data_ptr<T>(),
            .bias = biases,
            .n_queries = n,
            .n_items = std::min(tile_items, n_items - first_item),
            .width = tile_items,  // number of columns, padding included
            .first_item = first_item};
  }

  // Calls visit(tile) for each tile of queries [first, first + n) and the catalogue.
  template <typename T, typename Visit>
  void for_tiles(int64_t first, int64_t n, const Visit& visit) const {
    for (int64_t item = 0; item < n_items; item += tile_items) {
      const int64_t n_rows = std::min(tile_items, n_items - item);
      const Tensor tile_rows = weight.narrow(0, item, n_rows);
      if (n_rows < tile_items) padded_rows.narrow(0, 0, n_rows).copy_(tile_rows);
      visit(multiply<T>(first, n, n_rows < tile_items ? padded_rows : tile_rows, item));
    }
  }
};

template <typename T>
void rank_targets(const TiledCatalogue& tiles, const Tensor& targets, const Tensor& greater, const Tensor& equal,
                  cudaStream_t stream) {
  const Tensor target_scores = at::empty({tiles.tile_queries}, tiles.hidden.options());
  for (int64_t first = 0; first < tiles.n_queries; first += tiles.tile_queries) {
    const int64_t n = std::min(tiles.tile_queries, tiles.n_queries - first);
    const int64_t* tile_targets = targets.const_data_ptr<int64_t>() + first;
    const TargetRows<T> target_rows{.weight = tiles.weight.const_data_ptr<T>(),
                                    .targets = tile_targets,
                                    .n_catalogue = tiles.n_items,  // all items of the catalogue
                                    .n = n,
                                    .width = tiles.weight.size(1),
                                    .rows = tiles.padded_rows.mutable_data_ptr<T>()};
    gather_targets(target_rows, stream);
    extract_target_scores(tiles.multiply<T>(first, n, tiles.padded_rows, /*first_item=*/0), tile_targets,
                          target_scores.mutable_data_ptr<T>(), stream);
    const TargetCounts<T> counts{.targets = tile_targets,
                                 .target_scores = target_scores.const_data_ptr<T>(),
                                 .greater = greater.mutable_data_ptr<int64_t>() + first,
                                 .equal = equal.mutable_data_ptr<int64_t>() + first};
    tiles.for_tiles<T>(first, n, [&](const ScoreTile<T>& tile) { count_scores(tile, counts, stream); });
  }
}

// Maximum total length of the top-k lists of one group of queries. A single list of k items may be longer.
constexpr int64_t kMaxListItems = int64_t{1} << 22;

// Returns the number of segments per query. A segment is a range of a tile's columns with its own top-k list. A block
// processes one segment of one query, so with few queries, more segments keep the GPU busy.
int64_t choose_n_segments(const TiledCatalogue& tiles, int64_t k) {
  constexpr int64_t kBlocks = 1024;  // enough to occupy all multiprocessors
  const int64_t max_segments = std::min(tiles.tile_items / kSegmentColumns, kMaxListItems / (tiles.tile_queries * k));
  return std::clamp<int64_t>(kBlocks / tiles.tile_queries, 1, std::max<int64_t>(max_segments, 1));
}

template <typename T>
void top_k_in_tiles(const TiledCatalogue& tiles, const Tensor& exclude, const Tensor& scores, const Tensor& items,
                    cudaStream_t stream) {
  const int64_t k = scores.size(1), n_exclude = exclude.size(1), n_segments = choose_n_segments(tiles, k);
  const int64_t n_list_items = tiles.tile_queries * n_segments * k;
  // Memory for the lists (`best`) and as much for `scratch`.
  const int64_t list_bytes = 2 * n_list_items * static_cast<int64_t>(sizeof(ScoredItem<T>));
  const Tensor list_memory = at::empty({list_bytes}, items.options().dtype(at::kByte));
  auto* const memory = static_cast<ScoredItem<T>*>(list_memory.mutable_data_ptr());
  for (int64_t first = 0; first < tiles.n_queries; first += tiles.tile_queries) {
    const int64_t n = std::min(tiles.tile_queries, tiles.n_queries - first);
    TopKLists<T> lists{.exclude = exclude.const_data_ptr<int64_t>() + first * n_exclude,
                       .n_exclude = n_exclude,
                       .n_catalogue = tiles.n_items,  // all items of the catalogue
                       .n_segments = n_segments,
                       .k = k,
                       .is_first_tile = true,
                       .best = memory,
                       .scratch = memory + n_list_items};
    tiles.for_tiles<T>(first, n, [&](const ScoreTile<T>& tile) {
      select_top_k(tile, lists, stream);
      lists.is_first_tile = false;
    });
    merge_segments(lists, n, scores.mutable_data_ptr<T>() + first * k, items.mutable_data_ptr<int64_t>() + first * k,
                   stream);
  }
}

}  // namespace

void target_rank(const RankingTensors& tensors, const Tensor& targets, const Tensor& greater, const Tensor& equal) {
  const DeviceGuard guard(tensors.hidden.device());
  const TiledCatalogue tiles(tensors, kTileQueries);
  AT_DISPATCH_FLOATING_TYPES(tensors.hidden.scalar_type(), "target_rank", [&] {
    rank_targets<scalar_t>(tiles, targets, greater, equal, current_stream(tiles.device));
  });
}

void top_k(const RankingTensors& tensors, const Tensor& exclude, const Tensor& scores, const Tensor& items) {
  const DeviceGuard guard(tensors.hidden.device());
  const TiledCatalogue tiles(tensors, std::clamp<int64_t>(kMaxListItems / scores.size(1), 1, kTileQueries));
  scores.fill_(-std::numeric_limits<double>::infinity());
  items.fill_(-1);
  AT_DISPATCH_FLOATING_TYPES(tensors.hidden.scalar_type(), "top_k", [&] {
    top_k_in_tiles<scalar_t>(tiles, exclude, scores, items, current_stream(tiles.device));
  });
}

}  // namespace grf::cuda
