// Ranks of targets and top-k on the CPU, without storing the scores of all items. Specification:
// gru4rec_fast/ops/ranking.py.
//
// The outermost loop, which is divided among threads, is over blocks of catalogue rows; a block stays in the L2 cache.
// The next loop is over panels, which are groups of queries. The inner loop is over tiles, which are the products of a
// panel and some rows of the block (ranking/cpu_kernel.inc). Counts are integers, and scored items have a total order,
// so results do not depend on the number of threads. Bottleneck: the multiply-adds of the scores.
#include "ranking/ranking.h"

#include <ATen/Parallel.h>
#include <c10/util/Exception.h>

#include <algorithm>
#include <cstdint>
#include <limits>
#include <memory>
#include <mutex>
#include <type_traits>
#include <vector>

#include "common/simd.h"

namespace grf {
namespace {

// The k best items of one query so far, as a heap whose front is the worst of these items.
template <typename T>
class TopK {
 public:
  struct ScoredItem {
    T score;
    int64_t item;
    // Returns whether this item is better, so that std::sort puts the best item first.
    bool operator<(const ScoredItem& other) const {
      return score > other.score || (score == other.score && item < other.item);
    }
  };

  // `storage` [k] and `exclude` [n_exclude] must outlive this object. `exclude` must be in increasing order.
  TopK(ScoredItem* storage, int64_t k, const int64_t* exclude, int64_t n_exclude)
      : entries_(storage), k_(k), exclude_(exclude), n_exclude_(n_exclude) {}

  // Returns the score that a further item must exceed: the k-th best score so far. With fewer than k items, returns
  // -inf, so items of score -inf are never added.
  T threshold() const { return n_ < k_ ? -std::numeric_limits<T>::infinity() : entries_[0].score; }

  // Adds an item if it is not excluded and is one of the k best. Returns the new threshold.
  T add_item(T score, int64_t item) {
    if (score != score) {
      has_nan_ = true;
    } else if (!std::binary_search(exclude_, exclude_ + n_exclude_, item)) {
      add({score, item});
    }
    return threshold();
  }

  // Adds the items of another object.
  void merge(const TopK& other) {
    has_nan_ |= other.has_nan_;
    for (int64_t i = 0; i < other.n_; ++i) add(other.entries_[i]);
  }

  // Writes the items, best first, and pads them with score -inf and item -1. The object must not be used afterwards.
  void write(T* scores, int64_t* items) {
    std::sort(entries_, entries_ + n_);
    for (int64_t i = 0; i < k_; ++i) {
      scores[i] = i < n_ ? entries_[i].score : -std::numeric_limits<T>::infinity();
      items[i] = i < n_ ? entries_[i].item : -1;
    }
  }

  bool has_nan() const { return has_nan_; }

 private:
  void add(ScoredItem entry) {
    if (n_ == k_) {
      if (!(entry < entries_[0])) return;
      std::pop_heap(entries_, entries_ + n_--);
    }
    entries_[n_++] = entry;
    std::push_heap(entries_, entries_ + n_);
  }

  ScoredItem* entries_;
  int64_t k_, n_ = 0;
  const int64_t* exclude_;
  int64_t n_exclude_;
  bool has_nan_ = false;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "ranking/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024;  // maximum size of a block of catalogue rows; fits in the L2 cache
constexpr int64_t kRowMultiple = 12;         // blocks have a multiple of this many rows, for tiles of 6 or 12 rows

// The catalogue, and the queries in panels [n_panels][width][lanes]. A lane is the position of a query in a panel.
template <typename T>
struct PackedArguments : RankingArguments<T> {
  int64_t lanes, n_panels;
  std::vector<T> panels;

  const T* panel(int64_t p) const { return panels.data() + p * this->width * lanes; }
  const T* bias_from(int64_t item) const { return this->bias == nullptr ? nullptr : this->bias + item; }
  int64_t queries_in(int64_t p) const { return std::min(lanes, this->n_queries - p * lanes); }
  int64_t rows_per_block() const {
    const int64_t fit = kBlockBytes / (std::max<int64_t>(this->width, 1) * static_cast<int64_t>(sizeof(T)));
    return std::max<int64_t>(fit / kRowMultiple, 1) * kRowMultiple;
  }
};

// Copies the queries into panels. Unused lanes of the last panel are zeros.
template <typename T>
PackedArguments<T> pack_queries(const RankingArguments<T>& args) {
  PackedArguments<T> packed{args, /*lanes=*/0, /*n_panels=*/0, /*panels=*/{}};
  const int64_t vector_lanes = GRF_DISPATCH(vector_bytes)() / static_cast<int64_t>(sizeof(T));
  packed.lanes = packed.n_queries > vector_lanes ? 2 * vector_lanes : vector_lanes;  // one vector has less padding
  packed.n_panels = (packed.n_queries + packed.lanes - 1) / packed.lanes;
  packed.panels.resize(packed.n_panels * packed.width * packed.lanes);
  for (int64_t q = 0; q < packed.n_queries; ++q) {
    T* column = packed.panels.data() + q / packed.lanes * packed.width * packed.lanes + q % packed.lanes;
    for (int64_t k = 0; k < packed.width; ++k) column[k * packed.lanes] = args.hidden[q * packed.width + k];
  }
  return packed;
}

// Calls visit(first_row, n_rows) for the blocks [begin, end) of the catalogue.
template <typename T, typename Visit>
void for_blocks(const PackedArguments<T>& packed, int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * packed.rows_per_block();
    visit(first, std::min(packed.rows_per_block(), packed.n_items - first));
  }
}

template <typename T>
int64_t n_blocks(const PackedArguments<T>& packed) {
  return (packed.n_items + packed.rows_per_block() - 1) / packed.rows_per_block();
}

void check_no_nan(bool has_nan, int64_t query) {
  TORCH_CHECK_VALUE(!has_nan, "query ", query, " has a NaN score: look for NaN or infinity in hidden, weight and bias");
}

}  // namespace

template <typename T>
void rank_targets(const RankingArguments<T>& args, const int64_t* targets, int64_t* greater, int64_t* equal) {
  const PackedArguments<T> packed = pack_queries(args);
  const bool one_vector = packed.lanes * static_cast<int64_t>(sizeof(T)) == GRF_DISPATCH(vector_bytes)();
  const auto score = one_vector ? GRF_DISPATCH(score_targets<T, 1>) : GRF_DISPATCH(score_targets<T, 2>);
  const auto count = one_vector ? GRF_DISPATCH(count_rows<T, 1>) : GRF_DISPATCH(count_rows<T, 2>);
  const int64_t n_lanes = packed.n_panels * packed.lanes;  // number of lanes of all panels, used or not
  std::vector<T> target_scores(n_lanes);
  at::parallel_for(0, packed.n_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t q = p * packed.lanes;
      score(packed.panel(p), packed.weight, packed.bias, packed.width, targets + q, packed.queries_in(p),
            target_scores.data() + q);
    }
  });
  std::mutex mutex;
  std::vector<uint8_t> has_nan(n_lanes);
  at::parallel_for(0, n_blocks(packed), 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> thread_greater(n_lanes), thread_equal(n_lanes);
    const auto thread_has_nan = std::make_unique<bool[]>(n_lanes);
    for_blocks(packed, begin, end, [&](int64_t first, int64_t n_rows) {
      for (int64_t p = 0; p < packed.n_panels; ++p) {
        const int64_t q = p * packed.lanes;
        count(packed.panel(p), packed.weight + first * packed.width, packed.bias_from(first), n_rows, packed.width,
              target_scores.data() + q, thread_greater.data() + q, thread_equal.data() + q, thread_has_nan.get() + q);
      }
    });
    const std::lock_guard<std::mutex> lock(mutex);
    for (int64_t q = 0; q < packed.n_queries; ++q) {
      greater[q] += thread_greater[q];
      equal[q] += thread_equal[q];
      has_nan[q] |= static_cast<uint8_t>(thread_has_nan[q]);
    }
  });
  for (int64_t q = 0; q < packed.n_queries; ++q) {
    check_no_nan(has_nan[q] != 0, q);
    equal[q] -= 1;  // count_rows also counts the target itself
  }
}

namespace {

// A TopK for each query, and the memory for the items of all queries.
template <typename T>
struct QueriesTopK {
  std::vector<typename TopK<T>::ScoredItem> storage;
  std::vector<TopK<T>> queries;

  QueriesTopK(int64_t n_queries, int64_t k, const int64_t* exclude, int64_t n_exclude) : storage(n_queries * k) {
    queries.reserve(n_queries);
    for (int64_t q = 0; q < n_queries; ++q) {
      queries.emplace_back(storage.data() + q * k, k, exclude + q * n_exclude, n_exclude);
    }
  }
};

}  // namespace

template <typename T>
void select_top_k(const RankingArguments<T>& args, int64_t k, const int64_t* exclude, int64_t n_exclude, T* scores,
                  int64_t* items) {
  const PackedArguments<T> packed = pack_queries(args);
  const bool one_vector = packed.lanes * static_cast<int64_t>(sizeof(T)) == GRF_DISPATCH(vector_bytes)();
  const auto add_rows_of_panel = one_vector ? GRF_DISPATCH(add_rows<T, 1>) : GRF_DISPATCH(add_rows<T, 2>);
  std::mutex mutex;
  QueriesTopK<T> best(packed.n_queries, k, exclude, n_exclude);
  at::parallel_for(0, n_blocks(packed), 1, [&](int64_t begin, int64_t end) {
    QueriesTopK<T> thread_best(packed.n_queries, k, exclude, n_exclude);
    for_blocks(packed, begin, end, [&](int64_t first, int64_t n_rows) {
      for (int64_t p = 0; p < packed.n_panels; ++p) {
        add_rows_of_panel(packed.panel(p), packed.weight + first * packed.width, packed.bias_from(first), n_rows,
                          packed.width, first, packed.queries_in(p), thread_best.queries.data() + p * packed.lanes);
      }
    });
    const std::lock_guard<std::mutex> lock(mutex);
    for (int64_t q = 0; q < packed.n_queries; ++q) best.queries[q].merge(thread_best.queries[q]);
  });
  for (int64_t q = 0; q < packed.n_queries; ++q) {
    check_no_nan(best.queries[q].has_nan(), q);
    best.queries[q].write(scores + q * k, items + q * k);
  }
}

#define GRF_INSTANTIATE(T)                                                                    \
  template void rank_targets(const RankingArguments<T>&, const int64_t*, int64_t*, int64_t*); \
  template void select_top_k(const RankingArguments<T>&, int64_t, const int64_t*, int64_t, T*, int64_t*);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
