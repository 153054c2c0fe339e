// Triples for BPR on the CPU. Specification: gru4rec_fast/reference/bpr_triples.py.
//
// A triple is two Philox calls and a few dependent look-ups in the graph: bound by memory, so there is one copy for all
// instruction sets.
#include <ATen/Parallel.h>
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <algorithm>
#include <atomic>
#include <cstdint>
#include <optional>
#include <type_traits>

#include "common/checks.h"
#include "common/philox.h"

namespace grf {
namespace {

using at::Tensor;

constexpr int64_t kLimit = int64_t{1} << 31;
constexpr int64_t kGrain = 256;  // triples that are worth a thread

// The graph and the candidates as raw pointers.
template <typename index_t>
struct Draws {
  const int64_t* offsets;
  const index_t* neighbours;
  int64_t n_entries;
  const int64_t* users;
  int64_t n_candidates;
  const int64_t* starts;  // or null
  int64_t n_users, n_items;
  uint64_t seed;
  uint32_t step;
};

// A number in [0, limit) from two words.
int64_t below(uint32_t high, uint32_t low, int64_t limit) {
  const auto range = static_cast<uint64_t>(limit);
  return static_cast<int64_t>((high * range + (low * range >> 32)) >> 32);
}

// How many k < degree there are with items[k] - k <= rank; items rise.
template <typename index_t>
int64_t seen_before(const index_t* items, int64_t degree, int64_t rank) {
  int64_t low = 0, high = degree;
  while (low < high) {
    const int64_t middle = (low + high) >> 1;
    if (items[middle] - middle <= rank) {
      low = middle + 1;
    } else {
      high = middle;
    }
  }
  return low;
}

// Writes triple k to out[k], out[n + k], out[2 n + k]; false where its candidate does not fit the graph.
template <typename index_t>
bool draw(const Draws<index_t>& draws, int64_t k, int64_t n, int64_t* out) {
  const auto number = static_cast<uint32_t>(k);
  const auto first = philox::philox4x32({philox::kStreamTriples, draws.step, number, 0}, draws.seed);
  const auto second = philox::philox4x32({philox::kStreamTriples, draws.step, number, 1}, draws.seed);
  int64_t candidate, positive = 0;
  if (draws.starts == nullptr) {
    candidate = below(first.w0, first.w1, draws.n_candidates);
  } else {
    const int64_t* end = draws.starts + draws.n_candidates + 1;
    if (draws.starts[0] != 0 || end[-1] < 1 || end[-1] >= kLimit) return false;
    const int64_t interaction = below(first.w0, first.w1, end[-1]);
    candidate = std::upper_bound(draws.starts, end, interaction) - draws.starts - 1;
    if (candidate < 0 || candidate >= draws.n_candidates) return false;
    positive = interaction - draws.starts[candidate];
  }
  const int64_t user = draws.users[candidate];
  if (user < 0 || user >= draws.n_users) return false;
  const int64_t begin = draws.offsets[user], degree = draws.offsets[user + 1] - begin;
  if (begin < 0 || degree < 1 || degree >= draws.n_items || begin + degree > draws.n_entries) return false;
  if (draws.starts == nullptr) positive = below(first.w2, first.w3, degree);
  if (positive >= degree) return false;
  const int64_t rank = below(second.w0, second.w1, draws.n_items - degree);
  out[k] = user;
  out[n + k] = draws.neighbours[begin + positive] - draws.n_users;
  out[2 * n + k] = rank + seen_before(draws.neighbours + begin, degree, rank + draws.n_users);
  return true;
}

template <typename index_t>
void draw_all(const Draws<index_t>& draws, int64_t n, int64_t* out) {
  std::atomic<bool> fits{true};
  at::parallel_for(0, n, kGrain, [&](int64_t begin, int64_t end) {
    for (int64_t k = begin; k < end; ++k) {
      if (!draw(draws, k, n, out)) fits = false;
    }
  });
  TORCH_CHECK_VALUE(fits,
                    "users and starts do not fit the graph: draw from users that have an item and have not all items, "
                    "starts being the running sum of their degrees, below 2**31");
}

Tensor bpr_triples(const Tensor& offsets, const Tensor& neighbours, const Tensor& users,
                   const std::optional<Tensor>& starts, int64_t n_users, int64_t n_items, int64_t n, int64_t seed,
                   int64_t step) {
  check_counters(seed, step, 1);
  TORCH_CHECK_VALUE(n >= 0 && n < int64_t{1} << 32, "n=", n, ": must be in [0, 2**32)");
  TORCH_CHECK_VALUE(n_users >= 1 && n_users < kLimit, "n_users=", n_users, ": must be in [1, 2**31)");
  TORCH_CHECK_VALUE(n_items >= 1 && n_items < kLimit, "n_items=", n_items, ": must be in [1, 2**31)");
  TORCH_CHECK_VALUE(
      offsets.dim() == 1 && offsets.size(0) == n_users + n_items + 1 && offsets.scalar_type() == at::kLong,
      "offsets must be int64 [", n_users + n_items + 1, "]");
  TORCH_CHECK_VALUE(
      neighbours.dim() == 1 && (neighbours.scalar_type() == at::kInt || neighbours.scalar_type() == at::kLong),
      "neighbours must be int32 or int64 [n_entries]");
  TORCH_CHECK_VALUE(
      users.dim() == 1 && users.size(0) >= 1 && users.size(0) < kLimit && users.scalar_type() == at::kLong,
      "users must be int64 [n_candidates], one at least");
  const Tensor o = offsets.contiguous(), i = neighbours.contiguous(), u = users.contiguous(),
               s = starts.has_value() ? starts->contiguous() : Tensor();
  const int64_t* start = nullptr;
  if (starts.has_value()) {
    TORCH_CHECK_VALUE(s.dim() == 1 && s.size(0) == u.size(0) + 1 && s.scalar_type() == at::kLong,
                      "starts must be int64 [", u.size(0) + 1, "]");
    start = s.const_data_ptr<int64_t>();
  }
  const Tensor out = at::empty({3, n}, u.options());
  const auto run = [&](const auto* items) {
    const Draws<std::remove_const_t<std::remove_pointer_t<decltype(items)>>> draws{o.const_data_ptr<int64_t>(),
                                                                                   items,
                                                                                   i.size(0),
                                                                                   u.const_data_ptr<int64_t>(),
                                                                                   u.size(0),
                                                                                   start,
                                                                                   n_users,
                                                                                   n_items,
                                                                                   static_cast<uint64_t>(seed),
                                                                                   static_cast<uint32_t>(step)};
    draw_all(draws, n, out.mutable_data_ptr<int64_t>());
  };
  if (i.scalar_type() == at::kInt) {
    run(i.const_data_ptr<int32_t>());
  } else {
    run(i.const_data_ptr<int64_t>());
  }
  return out;
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("bpr_triples", &bpr_triples);
}

}  // namespace
}  // namespace grf
