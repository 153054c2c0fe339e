// The product L @ E of a graph's propagation matrix L and its nodes' features E on CUDA. The entries of L are computed
// from the graph's CSR indices. Specification: gru4rec_fast/ops/laplacian_propagation.py.
//
// Each column of a row is summed in the order of the neighbors, by one chain of multiply-adds. A long row (more than
// kSegmentEntries entries) is summed segment by segment, then over its segments in order. So the bits of a row depend
// neither on the other rows nor on the grid. A lane is a thread's index in its warp.
//
// Times in the comments are estimates for an H200 (4.8 TB/s) and Gowalla: 71,000 nodes, 1.6 million entries, 64 columns
// of float32.
#include "common/bfloat16.h"
#include "common/philox.h"
#include "common/simt.cuh"
#include "laplacian_propagation/laplacian_propagation.h"

namespace grf::cuda {

constexpr int kPropagationThreads = 256;
// Minimum number of resident blocks of multiply_rows_kernel per SM. Without it, the compiler makes room for five blocks
// of some instances and spills registers.
constexpr int kBlocksPerSm = 3;

// Computes row_scale and column_scale [n_nodes] from the degrees, and checks the offsets.
//
// Launch: one dimension, any number of blocks of kPropagationThreads; threads loop over nodes. Reads 8 bytes per node
// and writes two scales: 1.1 MB, 0.2 us. Bottleneck: the launch itself, a few us.
template <typename Sum>
__global__ void __launch_bounds__(kPropagationThreads) node_scales_kernel(PropagationArguments args) {
  for (int64_t node = global_thread(); node < args.n_nodes; node += all_threads()) {
    const int64_t begin = args.offsets[node], end = args.offsets[node + 1];
    GRF_DEVICE_CHECK(begin <= end && (node > 0 || begin == 0) && (node + 1 < args.n_nodes || end == args.n_entries),
                     "offsets must not decrease from 0 to the number of neighbors");
    const auto degree = static_cast<double>(end - begin + (args.adds_identity ? 1 : 0));
    const double exponents[2] = {args.row_exponent, args.column_exponent};
    for (int axis = 0; axis < 2; ++axis) {  // rows, columns
      const double power = exponents[axis] == 0    ? 1.0
                           : degree == 0           ? 0.0
                           : exponents[axis] == -1 ? 1.0 / degree
                                                   : 1.0 / sqrt(degree);
      auto* scale = static_cast<Sum*>(axis == 0 ? args.row_scale : args.column_scale);
      scale[node] = static_cast<Sum>(axis == 0 ? args.dropout_scale * power : power);
    }
  }
}

// Sets feature_rows[columns[i]] = i, and checks the columns.
//
// Launch: one dimension, any number of blocks of kPropagationThreads; threads loop over columns. Reads 8 bytes per
// column, writes 4 at random. Bottleneck: the launch itself.
__global__ void __launch_bounds__(kPropagationThreads) index_columns_kernel(PropagationArguments args) {
  for (int64_t i = global_thread(); i < args.n_columns; i += all_threads()) {
    const int64_t column = args.columns[i];
    GRF_DEVICE_CHECK(column >= 0 && column < args.n_nodes && (i == 0 || args.columns[i - 1] < column),
                     "columns must be strictly increasing nodes of the graph");
    args.feature_rows[column] = static_cast<int32_t>(i);
  }
}

// Lists the long rows and their segments, and checks the rows.
//
// Launch: one dimension, any number of blocks of kPropagationThreads; threads loop over rows of the result. Reads 16 to
// 24 bytes per row: below 2 MB, 0.4 us. Bottleneck: the launch itself. Hazard: two threads could write to the same
// position of a list, so each first reserves positions by an atomic addition. The order of the lists varies from run to
// run. It decides which warp sums a segment, but not the order within a sum.
__global__ void __launch_bounds__(kPropagationThreads) list_segments_kernel(PropagationArguments args) {
  for (int64_t i = global_thread(); i < args.n_rows; i += all_threads()) {
    const int64_t row = args.rows == nullptr ? i : args.rows[i];
    GRF_DEVICE_CHECK(row >= 0 && row < args.n_nodes && (args.rows == nullptr || i == 0 || args.rows[i - 1] < row),
                     "rows must be strictly increasing nodes of the graph");
    const int64_t entries = args.offsets[row + 1] - args.offsets[row];
    if (entries <= kSegmentEntries) continue;
    const int64_t n_segments = (entries - 1) / kSegmentEntries + 1;
    const auto first = static_cast<int64_t>(atomicAdd(args.counts, static_cast<unsigned long long>(n_segments)));
    const auto long_row = static_cast<int64_t>(atomicAdd(args.counts + 1, 1ull));
    args.long_rows[2 * long_row] = i;
    args.long_rows[2 * long_row + 1] = first;
    for (int64_t segment = 0; segment < n_segments; ++segment) {
      args.segments[2 * (first + segment)] = i;
      args.segments[2 * (first + segment) + 1] = segment;
    }
  }
}

// What an entry (row, neighbor) of L contributes to the result's row: a row of `features` times the neighbor's scale.
template <typename Sum>
struct GraphEntry {
  int64_t feature_row;
  Sum scale;
};

// Computes the entry in row `row` and column `neighbor` of L at step `step`. Returns false if dropout drops the entry,
// or if `features` has no row for the neighbor.
template <typename Sum>
__device__ __forceinline__ bool find_entry(const PropagationArguments& args, uint32_t step, int64_t row,
                                           int64_t neighbor, GraphEntry<Sum>* entry) {
  *entry = {neighbor, static_cast<const Sum*>(args.column_scale)[neighbor]};
  if (args.feature_rows != nullptr) {
    entry->feature_row = args.feature_rows[neighbor];
    if (entry->feature_row < 0) return false;
  }
  if (args.drop_threshold == 0) return true;
  const auto r = static_cast<uint32_t>(row), c = static_cast<uint32_t>(neighbor);
  const philox::Words philox_counter{philox::kStreamEdgeDropout, step, args.transposed ? c : r,
                                     args.transposed ? r : c};
  return philox::philox4x32(philox_counter, args.seed).w0 >= args.drop_threshold;
}

// Adds up to 32 entries to the sums of columns first_column + 32 k + lane, for k < kColumns. Each lane of the warp
// passes one entry, which is added if `keep`. Entries are added in the order of their lanes. `staged` is shared memory
// for 32 entries of the warp.
//
// Every lane adds all entries to its own columns, so it reads the entries from shared memory. Hazard: a lane could
// overwrite an entry of the previous call that another lane has not read yet. The first __syncwarp prevents that.
template <typename T, int kColumns>
__device__ __forceinline__ void add_entries(const PropagationArguments& args, bool keep,
                                            const GraphEntry<typename Stored<T>::Sum>& entry, int64_t first_column,
                                            GraphEntry<typename Stored<T>::Sum>* staged,
                                            typename Stored<T>::Sum (&sums)[kColumns]) {
  constexpr int kUnroll = 4;  // entries whose features are loaded before any is added
  const auto* features = static_cast<const T*>(args.features);
  const int lane = static_cast<int>(threadIdx.x % 32);
  const unsigned kept_lanes = __ballot_sync(kAllLanes, keep);
  const int n = __popc(kept_lanes);
  __syncwarp();
  if (keep) staged[__popc(kept_lanes & ((1u << lane) - 1))] = entry;
  __syncwarp();
  for (int start = 0; start < n; start += kUnroll) {
    T loaded[kUnroll][kColumns];
    typename Stored<T>::Sum scale[kUnroll];
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
      const bool exists = start + i < n;
      scale[i] = exists ? staged[start + i].scale : 0;
      const T* row = features + (exists ? staged[start + i].feature_row : 0) * args.width;
#pragma unroll
      for (int k = 0; k < kColumns; ++k) {
        const int64_t column = first_column + 32 * k + lane;
        loaded[i][k] = exists && column < args.width ? row[column] : T{0};
      }
    }
#pragma unroll
    for (int i = 0; i < kUnroll; ++i) {
#pragma unroll
      for (int k = 0; k < kColumns; ++k) sums[k] = fma(scale[i], Stored<T>::widen(loaded[i][k]), sums[k]);
    }
  }
}

// Sums columns first_column + 32 k + lane, for k < kColumns, over the entries [begin, end) of a row. If `diagonal`, the
// entry (row, row) is added first.
template <typename T, typename index_t, int kColumns>
__device__ __forceinline__ void sum_entries(const PropagationArguments& args, uint32_t step, int64_t row, int64_t begin,
                                            int64_t end, bool diagonal, int64_t first_column,
                                            GraphEntry<typename Stored<T>::Sum>* staged,
                                            typename Stored<T>::Sum (&sums)[kColumns]) {
  const auto* neighbors = static_cast<const index_t*>(args.neighbors);
  const int lane = static_cast<int>(threadIdx.x % 32);
  GraphEntry<typename Stored<T>::Sum> entry{0, 0};
#pragma unroll
  for (int k = 0; k < kColumns; ++k) sums[k] = 0;
  if (diagonal) {
    const bool keep = lane == 0 && find_entry(args, step, row, row, &entry);
    add_entries<T, kColumns>(args, keep, entry, first_column, staged, sums);
  }
  for (int64_t start = begin; start < end; start += 32) {
    bool keep = false;
    if (start + lane < end) {
      const auto neighbor = static_cast<int64_t>(neighbors[start + lane]);
      GRF_DEVICE_CHECK(neighbor >= 0 && neighbor < args.n_nodes, "neighbors: the graph has no such node");
      keep = find_entry(args, step, row, neighbor, &entry);
    }
    add_entries<T, kColumns>(args, keep, entry, first_column, staged, sums);
  }
}

// Returns the addend's row for node `row`, or null if there is none.
template <typename T>
__device__ __forceinline__ const T* addend_of(const PropagationArguments& args, int64_t row) {
  if (args.addend == nullptr) return nullptr;
  const int64_t addend_row = args.feature_rows == nullptr ? row : args.feature_rows[row];
  return addend_row < 0 ? nullptr : static_cast<const T*>(args.addend) + addend_row * args.width;
}

// Writes one column of row i of the result, which belongs to node `row`: scales the sum and adds the addend.
template <typename T>
__device__ __forceinline__ void write_result(const PropagationArguments& args, int64_t i, int64_t row, int64_t column,
                                             typename Stored<T>::Sum sum, const T* addend) {
  sum *= static_cast<const typename Stored<T>::Sum*>(args.row_scale)[row];
  if (addend != nullptr) sum += Stored<T>::widen(addend[column]);
  static_cast<T*>(args.out)[i * args.width + column] = Stored<T>::narrow(sum);
}

// Computes the short rows of the result, and for each long row the sums of its segments.
//
// Launch: in x, any number of blocks of kPropagationThreads, whose warps loop over segments and then rows (segments
// take longest); in y, one block per 32 * kColumns columns. Static shared memory: a GraphEntry per thread. Each lane of
// a warp computes one of 32 entries, then all lanes add the 32 entries in order, each lane to its own columns. Bytes:
// per entry a row of features, a scale and an index are read at random, and n_rows rows are written: 0.45 GB, 0.09 ms.
// Bottleneck: these reads; they are faster if E (18 MB here) stays in the L2 cache.
template <typename T, typename index_t, int kColumns>
__global__ void __launch_bounds__(kPropagationThreads, kBlocksPerSm) multiply_rows_kernel(PropagationArguments args) {
  using Sum = typename Stored<T>::Sum;
  const auto n_segments = static_cast<int64_t>(args.counts[0]);
  const int64_t first_column = static_cast<int64_t>(blockIdx.y) * (32 * kColumns), lane = threadIdx.x % 32;
  const int64_t n_tasks = n_segments + args.n_rows, n_warps = all_threads() / 32;
  const uint32_t step = first_step_word(args.step, args.counter);
  Sum sums[kColumns];
  GRF_SHARED(entries, GraphEntry<Sum>[kPropagationThreads]);
  GraphEntry<Sum>* const staged = entries + threadIdx.x / 32 * 32;
  for (int64_t task = global_thread() / 32; task < n_tasks; task += n_warps) {
    const bool is_segment = task < n_segments;
    const int64_t i = is_segment ? args.segments[2 * task] : task - n_segments;
    const int64_t segment = is_segment ? args.segments[2 * task + 1] : 0;
    const int64_t row = args.rows == nullptr ? i : args.rows[i];
    int64_t begin = args.offsets[row], end = args.offsets[row + 1];
    if (!is_segment && end - begin > kSegmentEntries) continue;
    begin += segment * kSegmentEntries;
    end = min(end, begin + kSegmentEntries);
    sum_entries<T, index_t, kColumns>(args, step, row, begin, end, args.adds_identity && segment == 0, first_column,
                                      staged, sums);
    const T* const addend = is_segment ? nullptr : addend_of<T>(args, row);
#pragma unroll
    for (int k = 0; k < kColumns; ++k) {
      const int64_t column = first_column + 32 * k + lane;
      if (column >= args.width) continue;
      if (is_segment) {
        static_cast<Sum*>(args.segment_sums)[task * args.width + column] = sums[k];
      } else {
        write_result<T>(args, i, row, column, sums[k], addend);
      }
    }
  }
}

// Computes the long rows of the result from the sums of their segments.
//
// Launch: one dimension, any number of blocks of kPropagationThreads, which loop over long rows; the threads of a block
// loop over columns. Reads a sum per segment and column, for at most 2 n_entries / kSegmentEntries segments: below 1
// MB, 0.2 us. Bottleneck: the launch itself.
template <typename T>
__global__ void __launch_bounds__(kPropagationThreads) add_segments_kernel(PropagationArguments args) {
  using Sum = typename Stored<T>::Sum;
  const auto n_long_rows = static_cast<int64_t>(args.counts[1]);
  const auto* segment_sums = static_cast<const Sum*>(args.segment_sums);
  for (int64_t long_row = blockIdx.x; long_row < n_long_rows; long_row += gridDim.x) {
    const int64_t i = args.long_rows[2 * long_row], first = args.long_rows[2 * long_row + 1];
    const int64_t row = args.rows == nullptr ? i : args.rows[i];
    const int64_t n_segments = (args.offsets[row + 1] - args.offsets[row] - 1) / kSegmentEntries + 1;
    const T* const addend = addend_of<T>(args, row);
    for (int64_t column = threadIdx.x; column < args.width; column += blockDim.x) {
      Sum sum = segment_sums[first * args.width + column];
      for (int64_t k = 1; k < n_segments; ++k) sum += segment_sums[(first + k) * args.width + column];
      write_result<T>(args, i, row, column, sum, addend);
    }
  }
}

namespace {

// Launches multiply_rows_kernel; a block in y computes a slice of 32 * kColumns columns.
template <typename T, typename index_t, int kColumns>
void launch_multiply_rows(const PropagationArguments& args, cudaStream_t stream) {
  const int64_t threads = 32 * (args.n_rows + max_segments(args.n_entries));
  const auto slices = static_cast<unsigned>((args.width - 1) / (32 * kColumns) + 1);
  GRF_LAUNCH((multiply_rows_kernel<T, index_t, kColumns>), dim3(blocks_for(threads, kPropagationThreads), slices),
             kPropagationThreads, 0, stream, args);
}

template <typename T, typename index_t>
void multiply_rows(const PropagationArguments& args, cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    launch_multiply_rows<T, index_t, 1>(args, stream);  // more columns of double would spill registers
  } else if (args.width <= 32) {
    launch_multiply_rows<T, index_t, 1>(args, stream);
  } else if (args.width <= 64) {
    launch_multiply_rows<T, index_t, 2>(args, stream);
  } else {
    launch_multiply_rows<T, index_t, 4>(args, stream);
  }
}

template <typename T>
void launch_kernels(const PropagationArguments& args, cudaStream_t stream) {
  using Sum = typename Stored<T>::Sum;
  const auto blocks = [](int64_t n) { return blocks_for(n, kPropagationThreads); };
  if (args.n_nodes > 0) {
    GRF_LAUNCH((node_scales_kernel<Sum>), blocks(args.n_nodes), kPropagationThreads, 0, stream, args);
  }
  if (args.n_columns > 0) {
    GRF_LAUNCH(index_columns_kernel, blocks(args.n_columns), kPropagationThreads, 0, stream, args);
  }
  if (args.n_rows == 0) return;
  GRF_LAUNCH(list_segments_kernel, blocks(args.n_rows), kPropagationThreads, 0, stream, args);
  if (args.width == 0) return;
  if (args.neighbors_are_int64) {
    multiply_rows<T, int64_t>(args, stream);
  } else {
    multiply_rows<T, int32_t>(args, stream);
  }
  if (max_segments(args.n_entries) > 0) {
    GRF_LAUNCH((add_segments_kernel<T>), blocks_for(max_segments(args.n_entries), 1), kPropagationThreads, 0, stream,
               args);
  }
}

}  // namespace

void multiply_matrix(const PropagationArguments& args, cudaStream_t stream) {
  switch (args.dtype) {
    case FeatureDtype::float32:
      return launch_kernels<float>(args, stream);
    case FeatureDtype::float64:
      return launch_kernels<double>(args, stream);
    case FeatureDtype::bfloat16:
      return launch_kernels<uint16_t>(args, stream);
  }
}

}  // namespace grf::cuda
