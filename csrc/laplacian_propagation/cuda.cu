// L @ E from CSR indices and degrees alone. Specification: gru4rec_fast/ops/laplacian_propagation.py.
//
// A row's sum is one chain of multiply-adds per column of E, in the order of its neighbors; a long row's is that of
// each of its segments, and then of these in order. Either way it depends neither on the other rows nor on the grid.
#include "common/bfloat16.h"
#include "common/philox.h"
#include "common/simt.cuh"
#include "laplacian_propagation/laplacian_propagation.h"

namespace grf::cuda {

constexpr int kLaplacianThreads = 256;

// How features of type T are read, summed and written.
template <typename T>
using Feature = Stored<T>;

// left and right [n_nodes] of the matrix, and the check of the offsets.
//
// Launch: one dimension, any number of blocks of any size; threads take nodes in strides of the grid. Reads 16 bytes a
// node (8 of them its neighbor's, from cache) and writes two sums.
template <typename Sum>
__global__ void __launch_bounds__(kLaplacianThreads) node_scales_kernel(LaplacianProduct product) {
  for (int64_t node = global_thread(); node < product.n_nodes; node += all_threads()) {
    const int64_t begin = product.offsets[node], end = product.offsets[node + 1];
    GRF_DEVICE_CHECK(
        begin <= end && (node > 0 || begin == 0) && (node + 1 < product.n_nodes || end == product.n_entries),
        "offsets must rise from 0 to the number of neighbors, and never fall");
    const auto degree = static_cast<double>(end - begin + (product.diagonal ? 1 : 0));
    const double exponents[2] = {product.left_exponent, product.right_exponent};
    for (int side = 0; side < 2; ++side) {
      const double power = exponents[side] == 0    ? 1.0
                           : degree == 0           ? 0.0
                           : exponents[side] == -1 ? 1.0 / degree
                                                   : 1.0 / sqrt(degree);
      auto* scale = static_cast<Sum*>(side == 0 ? product.left : product.right);
      scale[node] = static_cast<Sum>(side == 0 ? product.factor * power : power);
    }
  }
}

// positions[columns[i]] = i, and the check of the columns.
//
// Launch: as above, over the columns.
__global__ void __launch_bounds__(kLaplacianThreads) place_columns_kernel(LaplacianProduct product) {
  for (int64_t i = global_thread(); i < product.n_columns; i += all_threads()) {
    const int64_t column = product.columns[i];
    GRF_DEVICE_CHECK(column >= 0 && column < product.n_nodes && (i == 0 || product.columns[i - 1] < column),
                     "columns must be nodes of the graph, each rising above the one before");
    product.positions[column] = static_cast<int32_t>(i);
  }
}

// Lists the long rows and their segments, in no order, and checks the rows.
//
// Launch: as above, over the rows of the result.
__global__ void __launch_bounds__(kLaplacianThreads) list_segments_kernel(LaplacianProduct product) {
  for (int64_t i = global_thread(); i < product.n_rows; i += all_threads()) {
    const int64_t row = product.rows == nullptr ? i : product.rows[i];
    GRF_DEVICE_CHECK(
        row >= 0 && row < product.n_nodes && (product.rows == nullptr || i == 0 || product.rows[i - 1] < row),
        "rows must be nodes of the graph, each rising above the one before");
    const int64_t entries = product.offsets[row + 1] - product.offsets[row];
    if (entries <= kLaplacianSegment) continue;
    const int64_t n = (entries - 1) / kLaplacianSegment + 1;
    const auto first = static_cast<int64_t>(atomicAdd(product.counts, static_cast<unsigned long long>(n)));
    const auto number = static_cast<int64_t>(atomicAdd(product.counts + 1, 1ull));
    product.long_rows[2 * number] = i;
    product.long_rows[2 * number + 1] = first;
    for (int64_t segment = 0; segment < n; ++segment) {
      product.segments[2 * (first + segment)] = i;
      product.segments[2 * (first + segment) + 1] = segment;
    }
  }
}

// An entry of a row, looked up: where the neighbor's features stand, and right[neighbor].
template <typename Sum>
struct RowEntry {
  int64_t position;
  Sum scale;
};

// Looks an entry up; false where it is dropped or its neighbor is left out.
template <typename Sum>
__device__ __forceinline__ bool look_up(const LaplacianProduct& product, int64_t row, int64_t column,
                                        RowEntry<Sum>* entry) {
  *entry = {column, static_cast<const Sum*>(product.right)[column]};
  if (product.positions != nullptr) {
    entry->position = product.positions[column];
    if (entry->position < 0) return false;
  }
  if (product.threshold == 0) return true;
  const auto here = static_cast<uint32_t>(row), there = static_cast<uint32_t>(column);
  const philox::Words counter{philox::kStreamEdgeDropout, product.step, product.transposed ? there : here,
                              product.transposed ? here : there};
  return philox::philox4x32(counter, product.seed).w0 >= product.threshold;
}

// Adds the entries that a warp's lanes have each looked up and kept, in order of the lanes, to sums[k] for column
// first + 32 k + lane. staged: 32 entries of shared memory, the warp's own.
template <typename T, int kColumns>
__device__ __forceinline__ void add_entries(const LaplacianProduct& product, bool keep,
                                            const RowEntry<typename Feature<T>::Sum>& mine, int64_t first,
                                            RowEntry<typename Feature<T>::Sum>* staged,
                                            typename Feature<T>::Sum (&sums)[kColumns]) {
  constexpr int kTogether = 4;  // entries whose features are loaded before any is added
  const auto* features = static_cast<const T*>(product.features);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned kept = __ballot_sync(kAllLanes, keep);
  const int n = __popc(kept);
  __syncwarp();  // the entries before have been read
  if (keep) staged[__popc(kept & ((1u << lane) - 1))] = mine;
  __syncwarp();
  for (int entry = 0; entry < n; entry += kTogether) {
    T loaded[kTogether][kColumns];
    typename Feature<T>::Sum scale[kTogether];
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
      const bool there = entry + i < n;
      scale[i] = there ? staged[entry + i].scale : 0;
      const T* from = features + (there ? staged[entry + i].position : 0) * product.width;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int64_t column = first + 32 * k + lane;
        loaded[i][k] = there && column < product.width ? from[column] : T{0};
      }
    }
#pragma unroll
    for (int i = 0; i < kTogether; ++i) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) sums[k] = fma(scale[i], Feature<T>::widen(loaded[i][k]), sums[k]);
    }
  }
}

// Sums of columns first + 32 k + lane over the entries [begin, end) of a row, its diagonal before them if asked for.
template <typename T, typename index_t, int kColumns>
__device__ __forceinline__ void sum_entries(const LaplacianProduct& product, int64_t row, int64_t begin, int64_t end,
                                            bool diagonal, int64_t first, RowEntry<typename Feature<T>::Sum>* staged,
                                            typename Feature<T>::Sum (&sums)[kColumns]) {
  const auto* neighbors = static_cast<const index_t*>(product.neighbors);
  const int lane = static_cast<int>(threadIdx.x % 32);
  RowEntry<typename Feature<T>::Sum> entry{0, 0};
#pragma unroll
  for (int k = 0; k < kColumns; ++k) sums[k] = 0;
  if (diagonal) {
    const bool keep = lane == 0 && look_up(product, row, row, &entry);
    add_entries<T, kColumns>(product, keep, entry, first, staged, sums);
  }
  for (int64_t at = begin; at < end; at += 32) {
    bool keep = false;
    if (at + lane < end) {
      const auto column = static_cast<int64_t>(neighbors[at + lane]);
      GRF_DEVICE_CHECK(column >= 0 && column < product.n_nodes, "neighbors: the graph has no such node");
      keep = look_up(product, row, column, &entry);
    }
    add_entries<T, kColumns>(product, keep, entry, first, staged, sums);
  }
}

// What is added to the result of node `row`; null where nothing is.
template <typename T>
__device__ __forceinline__ const T* added_to(const LaplacianProduct& product, int64_t row) {
  if (product.added == nullptr) return nullptr;
  const int64_t own = product.positions == nullptr ? row : product.positions[row];
  return own < 0 ? nullptr : static_cast<const T*>(product.added) + own * product.width;
}

// Writes a column of row i of the result, that of node `row`, from its sum.
template <typename T>
__device__ __forceinline__ void put_result(const LaplacianProduct& product, int64_t i, int64_t row, int64_t column,
                                           typename Feature<T>::Sum sum, const T* added) {
  sum *= static_cast<const typename Feature<T>::Sum*>(product.left)[row];
  if (added != nullptr) sum += Feature<T>::widen(added[column]);
  static_cast<T*>(product.out)[i * product.width + column] = Feature<T>::narrow(sum);
}

// The rows of the result; of long rows, their segments' sums into `partials`.
//
// Launch: x over warps, any number of blocks of a multiple of 32 threads, which take segments and rows in strides of
// the grid, the segments (the longest pieces of work) first; y over slices of 32 kColumns columns. A warp has a column
// of E per lane and step: 32 entries are looked up at once, one per lane, and then added one after another, from shared
// memory.
// Counted bytes, of all slices: n_entries * (width features + one sum + an index) at random, and n_rows * width
// features written; what is added is read once.
template <typename T, typename index_t, int kColumns>
__global__ void __launch_bounds__(kLaplacianThreads) multiply_laplacian_kernel(LaplacianProduct product) {
  using Sum = typename Feature<T>::Sum;
  const auto n_segments = static_cast<int64_t>(product.counts[0]);
  const int64_t first = static_cast<int64_t>(blockIdx.y) * (32 * kColumns), lane = threadIdx.x % 32;
  const int64_t n_work = n_segments + product.n_rows, warps = all_threads() / 32;
  Sum sums[kColumns];
  GRF_SHARED(entries, RowEntry<Sum>[kLaplacianThreads]);
  RowEntry<Sum>* const staged = entries + threadIdx.x / 32 * 32;
  for (int64_t work = global_thread() / 32; work < n_work; work += warps) {
    const bool is_segment = work < n_segments;
    const int64_t i = is_segment ? product.segments[2 * work] : work - n_segments;
    const int64_t segment = is_segment ? product.segments[2 * work + 1] : 0;
    const int64_t row = product.rows == nullptr ? i : product.rows[i];
    int64_t begin = product.offsets[row], end = product.offsets[row + 1];
    if (!is_segment && end - begin > kLaplacianSegment) continue;
    begin += segment * kLaplacianSegment;
    end = min(end, begin + kLaplacianSegment);
    sum_entries<T, index_t, kColumns>(product, row, begin, end, product.diagonal && segment == 0, first, staged, sums);
    const T* const added = is_segment ? nullptr : added_to<T>(product, row);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int64_t column = first + 32 * k + lane;
      if (column >= product.width) continue;
      if (is_segment) {
        static_cast<Sum*>(product.partials)[work * product.width + column] = sums[k];
      } else {
        put_result<T>(product, i, row, column, sums[k], added);
      }
    }
  }
}

// Long rows of the result from the sums of their segments.
//
// Launch: x over long rows, any number of blocks, which take them in strides of the grid; threads over columns.
template <typename T>
__global__ void __launch_bounds__(kLaplacianThreads) add_segments_kernel(LaplacianProduct product) {
  using Sum = typename Feature<T>::Sum;
  const auto n_long = static_cast<int64_t>(product.counts[1]);
  const auto* partials = static_cast<const Sum*>(product.partials);
  for (int64_t number = blockIdx.x; number < n_long; number += gridDim.x) {
    const int64_t i = product.long_rows[2 * number], first = product.long_rows[2 * number + 1];
    const int64_t row = product.rows == nullptr ? i : product.rows[i];
    const int64_t n = (product.offsets[row + 1] - product.offsets[row] - 1) / kLaplacianSegment + 1;
    const T* const added = added_to<T>(product, row);
    for (int64_t column = threadIdx.x; column < product.width; column += blockDim.x) {
      Sum sum = partials[first * product.width + column];
      for (int64_t k = 1; k < n; ++k) sum += partials[(first + k) * product.width + column];
      put_result<T>(product, i, row, column, sum, added);
    }
  }
}

namespace {

template <typename T, typename index_t, int kColumns>
void multiply_slices(const LaplacianProduct& product, cudaStream_t stream) {
  const int64_t threads = 32 * (product.n_rows + most_segments(product.n_entries));
  const auto slices = static_cast<unsigned>((product.width - 1) / (32 * kColumns) + 1);
  GRF_LAUNCH((multiply_laplacian_kernel<T, index_t, kColumns>), dim3(blocks_for(threads, kLaplacianThreads), slices),
             kLaplacianThreads, 0, stream, product);
}

template <typename T, typename index_t>
void multiply(const LaplacianProduct& product, cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    multiply_slices<T, index_t, 1>(product, stream);  // more do not fit in registers everywhere
  } else if (product.width <= 32) {
    multiply_slices<T, index_t, 1>(product, stream);
  } else if (product.width <= 64) {
    multiply_slices<T, index_t, 2>(product, stream);
  } else {
    multiply_slices<T, index_t, 4>(product, stream);
  }
}

template <typename T>
void run(const LaplacianProduct& product, cudaStream_t stream) {
  using Sum = typename Feature<T>::Sum;
  const auto over = [](int64_t n) { return blocks_for(n, kLaplacianThreads); };
  if (product.n_nodes > 0) {
    GRF_LAUNCH((node_scales_kernel<Sum>), over(product.n_nodes), kLaplacianThreads, 0, stream, product);
  }
  if (product.n_columns > 0) {
    GRF_LAUNCH(place_columns_kernel, over(product.n_columns), kLaplacianThreads, 0, stream, product);
  }
  if (product.n_rows == 0) return;
  GRF_LAUNCH(list_segments_kernel, over(product.n_rows), kLaplacianThreads, 0, stream, product);
  if (product.width == 0) return;
  if (product.neighbors_are_wide) {
    multiply<T, int64_t>(product, stream);
  } else {
    multiply<T, int32_t>(product, stream);
  }
  if (most_segments(product.n_entries) > 0) {
    GRF_LAUNCH((add_segments_kernel<T>), blocks_for(most_segments(product.n_entries), 1), kLaplacianThreads, 0, stream,
               product);
  }
}

}  // namespace

void multiply_laplacian(const LaplacianProduct& product, cudaStream_t stream) {
  switch (product.type) {
    case FeatureType::float32:
      return run<float>(product, stream);
    case FeatureType::float64:
      return run<double>(product, stream);
    case FeatureType::bfloat16:
      return run<uint16_t>(product, stream);
  }
}

}  // namespace grf::cuda
