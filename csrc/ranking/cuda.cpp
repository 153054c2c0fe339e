// Ranking on CUDA. Specification: gru4rec_fast/ops/ranking.py. torch multiplies a tile of queries with a tile of
// the catalogue into kept memory, and kernels count, or pick the best, while it is in the cache.
//
// Every product has the same shape and strides, the last tile's being filled up: BLAS then sums every score in the same
// way, so that a target's score, which is one of a product of its own, is comparable bit by bit with any other's.
#include <ATen/Dispatch.h>
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

// The catalogue in tiles, and the memory that is kept for the products.
struct Tiles {
  at::Device device;
  Tensor hidden, weight, bias;
  int64_t n_queries, n_items, tile_queries, tile_items;
  Tensor products, filled;  // filled: rows [tile_items, width] that are not as they stand in the table

  // `most_queries`: of a tile.
  Tiles(const RankingTensors& given, int64_t most_queries)
      : device(given.hidden.device()),
        hidden(given.hidden),
        weight(given.weight),
        bias(given.bias),
        n_queries(hidden.size(0)),
        n_items(weight.size(0)) {
    const int64_t width = weight.size(1);
    TORCH_CHECK_VALUE(n_items < kMostItems, "weight has ", n_items, " rows: must be fewer than ", kMostItems);
    tile_queries = std::max<int64_t>(std::min(n_queries, most_queries), 1);
    tile_items = std::max(std::min(kTileScores / tile_queries, n_items), tile_queries);
    products = at::empty({tile_queries * tile_items}, hidden.options());
    filled = at::zeros({tile_items, width}, hidden.options());
  }

  // Products of the queries [first, first + n) with as many rows as a tile has.
  template <typename T>
  ScoreTile<T> multiply(int64_t first, int64_t n, const Tensor& rows, int64_t first_item) const {
    Tensor out = products.narrow(0, 0, n * tile_items).view({n, tile_items});
    at::mm_out(out, hidden.narrow(0, first, n), rows.t());
    const T* biases = bias.defined() ? bias.const_data_ptr<T>() + first_item : nullptr;
    return {out.const_data_ptr<T>(), biases, n, std::min(tile_items, n_items - first_item), tile_items, first_item};
  }

  // Calls visit(tile) for every tile of the catalogue.
  template <typename T, typename Visit>
  void for_tiles(int64_t first, int64_t n, const Visit& visit) const {
    for (int64_t item = 0; item < n_items; item += tile_items) {
      const int64_t rows = std::min(tile_items, n_items - item);
      const Tensor given = weight.narrow(0, item, rows);
      if (rows < tile_items) filled.narrow(0, 0, rows).copy_(given);
      visit(multiply<T>(first, n, rows < tile_items ? filled : given, item));
    }
  }
};

template <typename T>
void count_targets(const Tiles& catalogue, const Tensor& targets, const Tensor& greater, const Tensor& equal,
                   cudaStream_t stream) {
  const Tensor own = at::empty({catalogue.tile_queries}, catalogue.hidden.options());
  for (int64_t first = 0; first < catalogue.n_queries; first += catalogue.tile_queries) {
    const int64_t n = std::min(catalogue.tile_queries, catalogue.n_queries - first);
    const int64_t* of = targets.const_data_ptr<int64_t>() + first;
    gather_targets(TargetRows<T>{catalogue.weight.const_data_ptr<T>(), of, catalogue.n_items, n,
                                 catalogue.weight.size(1), catalogue.filled.mutable_data_ptr<T>()},
                   stream);
    take_own_scores(catalogue.multiply<T>(first, n, catalogue.filled, 0), of, own.mutable_data_ptr<T>(), stream);
    const TargetCounts<T> counts{of, own.const_data_ptr<T>(), greater.mutable_data_ptr<int64_t>() + first,
                                 equal.mutable_data_ptr<int64_t>() + first};
    catalogue.for_tiles<T>(first, n, [&](const ScoreTile<T>& tile) { count_scores(tile, counts, stream); });
  }
}

// That the lists of a tile's queries have between them, unless k itself is more.
constexpr int64_t kEntries = int64_t{1} << 22;

// Blocks of a query, with a list each: few queries would leave most of the device idle.
int64_t segments_for(const Tiles& catalogue, int64_t k) {
  constexpr int64_t kBlocks = 1024;
  const int64_t most = std::min(catalogue.tile_items / kSegmentColumns, kEntries / (catalogue.tile_queries * k));
  return std::clamp<int64_t>(kBlocks / catalogue.tile_queries, 1, std::max<int64_t>(most, 1));
}

template <typename T>
void find_best_of_all(const Tiles& catalogue, const Tensor& exclude, const Tensor& scores, const Tensor& items,
                      cudaStream_t stream) {
  const int64_t k = scores.size(1), n_exclude = exclude.size(1), segments = segments_for(catalogue, k);
  const int64_t entries = catalogue.tile_queries * segments * k;
  const Tensor lists = at::empty({2 * entries * static_cast<int64_t>(sizeof(Entry<T>)) / 8}, items.options());
  auto* const memory = static_cast<Entry<T>*>(lists.mutable_data_ptr());
  for (int64_t first = 0; first < catalogue.n_queries; first += catalogue.tile_queries) {
    const int64_t n = std::min(catalogue.tile_queries, catalogue.n_queries - first);
    BestLists<T> best{exclude.const_data_ptr<int64_t>() + first * n_exclude,
                      n_exclude,
                      catalogue.n_items,
                      segments,
                      k,
                      /*fresh=*/true,
                      {memory, memory + entries}};
    catalogue.for_tiles<T>(first, n, [&](const ScoreTile<T>& tile) {
      find_best(tile, best, stream);
      best.fresh = false;
    });
    merge_segments(best, n, scores.mutable_data_ptr<T>() + first * k, items.mutable_data_ptr<int64_t>() + first * k,
                   stream);
  }
}

}  // namespace

void target_rank(const RankingTensors& given, const Tensor& targets, const Tensor& greater, const Tensor& equal) {
  const DeviceGuard guard(given.hidden.device());
  const Tiles catalogue(given, kTileQueries);
  AT_DISPATCH_FLOATING_TYPES(given.hidden.scalar_type(), "target_rank", [&] {
    count_targets<scalar_t>(catalogue, targets, greater, equal, current_stream(catalogue.device));
  });
}

void top_k(const RankingTensors& given, const Tensor& exclude, const Tensor& scores, const Tensor& items) {
  const DeviceGuard guard(given.hidden.device());
  const Tiles catalogue(given, std::clamp<int64_t>(kEntries / scores.size(1), 1, kTileQueries));
  scores.fill_(-std::numeric_limits<double>::infinity());
  items.fill_(-1);
  AT_DISPATCH_FLOATING_TYPES(given.hidden.scalar_type(), "top_k", [&] {
    find_best_of_all<scalar_t>(catalogue, exclude, scores, items, current_stream(catalogue.device));
  });
}

}  // namespace grf::cuda
