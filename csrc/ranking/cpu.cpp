// Ranking on the CPU: the rank of each query's target in the whole catalogue by counting, and the k best items, without
// ever holding queries x catalogue scores. Specification: gru4rec_fast/ops/ranking.py.
//
// The catalogue is cut into blocks of rows that stay in a core's L2 cache while all queries pass over them, panel by
// panel; threads share out the blocks. Counts are integers and the best are totally ordered, so the result does not
// depend on the number of threads.
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

// The k best items offered to one query: a heap of (score, item) whose front is the worst of them.
template <typename T>
class Best {
 public:
  struct Entry {
    T score;
    int64_t item;
    bool operator<(const Entry& other) const {  // "is better than": the order of std::sort and, reversed, of the heap
      return score > other.score || (score == other.score && item < other.item);
    }
  };

  // `storage` [k] and the sorted `exclude` [n_exclude] outlive this object.
  Best(Entry* storage, int64_t k, const int64_t* exclude, int64_t n_exclude)
      : entries_(storage), k_(k), exclude_(exclude), n_exclude_(n_exclude) {}

  // A later item is taken when its score beats this one, the k-th best so far. An item scored -inf never is.
  T threshold() const { return n_ < k_ ? -std::numeric_limits<T>::infinity() : entries_[0].score; }

  // Takes an item that beats the threshold, or that ties with it and has a lower index; returns the new threshold.
  T offer(T score, int64_t item) {
    if (score != score) {
      nan_ = true;
    } else if (!std::binary_search(exclude_, exclude_ + n_exclude_, item)) {
      take({score, item});
    }
    return threshold();
  }

  void merge(const Best& other) {
    nan_ |= other.nan_;
    for (int64_t i = 0; i < other.n_; ++i) take(other.entries_[i]);
  }

  // Writes the entries best first, then padding (-inf, -1). Spoils the heap.
  void write(T* scores, int64_t* items) {
    std::sort(entries_, entries_ + n_);
    for (int64_t i = 0; i < k_; ++i) {
      scores[i] = i < n_ ? entries_[i].score : -std::numeric_limits<T>::infinity();
      items[i] = i < n_ ? entries_[i].item : -1;
    }
  }

  bool nan() const { return nan_; }

 private:
  void take(Entry entry) {
    if (n_ == k_) {
      if (!(entry < entries_[0])) return;
      std::pop_heap(entries_, entries_ + n_--);
    }
    entries_[n_++] = entry;
    std::push_heap(entries_, entries_ + n_);
  }

  Entry* entries_;
  int64_t k_, n_ = 0;
  const int64_t* exclude_;
  int64_t n_exclude_;
  bool nan_ = false;
};

}  // namespace
}  // namespace grf

#define GRF_KERNEL "ranking/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kBlockBytes = 256 * 1024;  // rows of the table that stay in L2 while the queries pass
constexpr int64_t kRowMultiple = 12;         // a multiple of every tile's rows

// The problem as raw pointers: a table of n_items rows, queries packed in panels [n_panels][width][lanes].
template <typename T>
struct Problem {
  const T* weight;
  const T* bias;  // or null
  int64_t n_items, width, n_queries;
  int64_t lanes, n_panels;
  std::vector<T> panels;

  const T* panel(int64_t p) const { return panels.data() + p * width * lanes; }
  const T* bias_from(int64_t item) const { return bias == nullptr ? nullptr : bias + item; }
  int64_t queries_in(int64_t p) const { return std::min(lanes, n_queries - p * lanes); }
  int64_t block_rows() const {
    const int64_t fit = kBlockBytes / (std::max<int64_t>(width, 1) * static_cast<int64_t>(sizeof(T)));
    return std::max<int64_t>(fit / kRowMultiple, 1) * kRowMultiple;
  }
};

template <typename T>
Problem<T> pack(const Catalogue<T>& catalogue) {
  Problem<T> problem;
  problem.weight = catalogue.weight;
  problem.bias = catalogue.bias;
  problem.n_items = catalogue.n_items;
  problem.width = catalogue.width;
  problem.n_queries = catalogue.n_queries;
  const int64_t vector = GRF_DISPATCH(vector_bytes)() / static_cast<int64_t>(sizeof(T));
  problem.lanes = problem.n_queries > vector ? 2 * vector : vector;  // few queries: do not score padding
  problem.n_panels = (problem.n_queries + problem.lanes - 1) / problem.lanes;
  problem.panels.resize(problem.n_panels * problem.width * problem.lanes);
  for (int64_t q = 0; q < problem.n_queries; ++q) {
    T* to = problem.panels.data() + q / problem.lanes * problem.width * problem.lanes + q % problem.lanes;
    for (int64_t k = 0; k < problem.width; ++k) to[k * problem.lanes] = catalogue.hidden[q * problem.width + k];
  }
  return problem;
}

// Calls visit(first_item, n_rows) for the blocks of the catalogue that lie in [begin, end) block numbers.
template <typename T, typename Visit>
void for_blocks(const Problem<T>& problem, int64_t begin, int64_t end, const Visit& visit) {
  for (int64_t block = begin; block < end; ++block) {
    const int64_t first = block * problem.block_rows();
    visit(first, std::min(problem.block_rows(), problem.n_items - first));
  }
}

template <typename T>
int64_t count_blocks(const Problem<T>& problem) {
  return (problem.n_items + problem.block_rows() - 1) / problem.block_rows();
}

void check_no_nan(int64_t query) {
  TORCH_CHECK_VALUE(query < 0, "query ", query,
                    " has a NaN score: look for NaN or infinity in hidden, weight and bias");
}

}  // namespace

template <typename T>
void count_targets(const Catalogue<T>& catalogue, const int64_t* targets, int64_t* greater, int64_t* equal) {
  const Problem<T> problem = pack(catalogue);
  const bool narrow = problem.lanes * static_cast<int64_t>(sizeof(T)) == GRF_DISPATCH(vector_bytes)();
  const auto score = narrow ? GRF_DISPATCH(score_targets<T, 1>) : GRF_DISPATCH(score_targets<T, 2>);
  const auto count = narrow ? GRF_DISPATCH(count_rows<T, 1>) : GRF_DISPATCH(count_rows<T, 2>);
  const int64_t n = problem.n_panels * problem.lanes;  // with the last panel's unused lanes
  std::vector<T> target_scores(n);
  at::parallel_for(0, problem.n_panels, 1, [&](int64_t begin, int64_t end) {
    for (int64_t p = begin; p < end; ++p) {
      const int64_t q = p * problem.lanes;
      score(problem.panel(p), problem.weight, problem.bias, problem.width, targets + q, problem.queries_in(p),
            target_scores.data() + q);
    }
  });
  std::mutex adding;
  std::vector<uint8_t> nan(n);
  at::parallel_for(0, count_blocks(problem), 1, [&](int64_t begin, int64_t end) {
    std::vector<int64_t> my_greater(n), my_equal(n);
    const auto my_nan = std::make_unique<bool[]>(n);
    for_blocks(problem, begin, end, [&](int64_t first, int64_t n_rows) {
      for (int64_t p = 0; p < problem.n_panels; ++p) {
        const int64_t q = p * problem.lanes;
        count(problem.panel(p), problem.weight + first * problem.width, problem.bias_from(first), n_rows, problem.width,
              target_scores.data() + q, my_greater.data() + q, my_equal.data() + q, my_nan.get() + q);
      }
    });
    const std::lock_guard<std::mutex> lock(adding);
    for (int64_t q = 0; q < problem.n_queries; ++q) {
      greater[q] += my_greater[q];
      equal[q] += my_equal[q];
      nan[q] |= static_cast<uint8_t>(my_nan[q]);
    }
  });
  for (int64_t q = 0; q < problem.n_queries; ++q) {
    check_no_nan(nan[q] != 0 ? q : -1);
    equal[q] -= 1;  // the target ties with itself
  }
}

namespace {

// The best of every query, and what they point into: one thread's share, or all of it.
template <typename T>
struct AllBest {
  std::vector<typename Best<T>::Entry> storage;
  std::vector<Best<T>> queries;

  AllBest(int64_t n_queries, int64_t k, const int64_t* exclude, int64_t n_exclude) : storage(n_queries * k) {
    queries.reserve(n_queries);
    for (int64_t q = 0; q < n_queries; ++q) {
      queries.emplace_back(storage.data() + q * k, k, exclude + q * n_exclude, n_exclude);
    }
  }
};

}  // namespace

template <typename T>
void find_best(const Catalogue<T>& catalogue, int64_t k, const int64_t* exclude, int64_t n_exclude, T* scores,
               int64_t* items) {
  const Problem<T> problem = pack(catalogue);
  const bool narrow = problem.lanes * static_cast<int64_t>(sizeof(T)) == GRF_DISPATCH(vector_bytes)();
  const auto offer = narrow ? GRF_DISPATCH(offer_rows<T, 1>) : GRF_DISPATCH(offer_rows<T, 2>);
  std::mutex merging;
  AllBest<T> best(problem.n_queries, k, exclude, n_exclude);
  at::parallel_for(0, count_blocks(problem), 1, [&](int64_t begin, int64_t end) {
    AllBest<T> mine(problem.n_queries, k, exclude, n_exclude);
    for_blocks(problem, begin, end, [&](int64_t first, int64_t n_rows) {
      for (int64_t p = 0; p < problem.n_panels; ++p) {
        offer(problem.panel(p), problem.weight + first * problem.width, problem.bias_from(first), n_rows, problem.width,
              first, problem.queries_in(p), mine.queries.data() + p * problem.lanes);
      }
    });
    const std::lock_guard<std::mutex> lock(merging);
    for (int64_t q = 0; q < problem.n_queries; ++q) best.queries[q].merge(mine.queries[q]);
  });
  for (int64_t q = 0; q < problem.n_queries; ++q) {
    check_no_nan(best.queries[q].nan() ? q : -1);
    best.queries[q].write(scores + q * k, items + q * k);
  }
}

#define GRF_INSTANTIATE(T)                                                              \
  template void count_targets(const Catalogue<T>&, const int64_t*, int64_t*, int64_t*); \
  template void find_best(const Catalogue<T>&, int64_t, const int64_t*, int64_t, T*, int64_t*);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
