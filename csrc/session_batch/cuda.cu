// Session-parallel mini-batches on CUDA. Specification: gru4rec_fast/ops/session_batch.py.
#include "common/simt.cuh"
#include "session_batch/session_batch.h"

namespace grf::cuda {

constexpr int kMaxSessionThreads = 512;

// The events of a session: the items [begin, end) of the log.
struct EventRange {
  int64_t begin, end;
};

// Returns the events of session order[order_index], after checks.
__device__ __forceinline__ EventRange session_events(const SessionBatchArguments& args, int64_t order_index) {
  const int64_t session = args.order == nullptr ? order_index : args.order[order_index];
  GRF_DEVICE_CHECK(session >= 0 && session < args.n_sessions, "order: a session is not in the log");
  const EventRange range{args.offsets[session], args.offsets[session + 1]};
  GRF_DEVICE_CHECK(0 <= range.begin && range.begin <= range.end && range.end <= args.n_events,
                   "offsets: a session is not a range of the items");
  return range;
}

// Reads the state of a lane from lane_session and lane_position, and checks it.
__device__ __forceinline__ SessionLane read_lane(const SessionBatchArguments& args, int64_t lane) {
  const int64_t order_index = args.lane_session[lane * args.session_stride];
  const int64_t position = args.lane_position[lane * args.position_stride];
  GRF_DEVICE_CHECK(order_index >= -1 && order_index <= args.order_length,
                   "lane_session: must be in [-1, length of order]");
  // Not started (-1) or dead (order_length): the position may be any number, so nothing is computed from it.
  if (order_index == -1 || order_index == args.order_length) return {order_index, position, /*end=*/0};
  const EventRange session = session_events(args, order_index);
  GRF_DEVICE_CHECK(session.begin <= position && position < session.end,
                   "lane_position: not an event of the session of its lane");
  return {order_index, position, session.end};
}

// Returns the number of threads of the block before this one whose flag is true. Writes the number of all threads whose
// flag is true to `total`. Every thread must call this function. `counts` is shared memory, an int per warp.
__device__ __forceinline__ int rank_in_block(bool flag, int* counts, int* total) {
  // Here a lane is a thread of a warp, not a lane of the mini-batch.
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const unsigned flags = __ballot_sync(kAllLanes, flag);
  if (lane == 0) counts[warp] = __popc(flags);
  __syncthreads();
  int preceding = 0, sum = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x / 32); ++i) {
    const int count = counts[i];
    preceding += i < warp ? count : 0;
    sum += count;
  }
  __syncthreads();  // all threads have read the counts, which the next call overwrites
  *total = sum;
  return preceding + __popc(flags & ((1u << lane) - 1));
}

// Finds the next n_wanted sessions of two or more events and writes their indices in `order` to order_indices. Returns
// the number of found sessions, which is less than n_wanted only at the end of `order`. Moves the cursor past the
// sessions that it read: the same sessions as in the CPU implementation. Every thread must call this function.
__device__ __forceinline__ int find_sessions(const SessionBatchArguments& args, int n_wanted, int64_t* cursor,
                                             int64_t* order_indices, int* counts) {
  int n_found = 0;
  while (n_found < n_wanted && *cursor < args.order_length) {
    const int64_t order_index = *cursor + static_cast<int64_t>(threadIdx.x);
    bool is_long_enough = false;
    if (static_cast<int>(threadIdx.x) < n_wanted - n_found && order_index < args.order_length) {
      const EventRange session = session_events(args, order_index);
      is_long_enough = session.end - session.begin >= 2;
    }
    int n_long_enough;
    const int rank = rank_in_block(is_long_enough, counts, &n_long_enough);
    if (is_long_enough) order_indices[n_found + rank] = order_index;
    *cursor = min(*cursor + (n_wanted - n_found), args.order_length);
    n_found += n_long_enough;
  }
  __syncthreads();
  return n_found;
}

// Computes all steps of a call, for all lanes.
//
// Launch: one block of 32 to kMaxSessionThreads threads; dynamic shared memory: a SessionLane (24 bytes) per lane,
// unless `scratch` is given. Thread i processes lanes i, i + blockDim.x, ... at every step. Lanes that start a session
// at the same step take the next sessions in lane order.
//
// Bytes: a step reads two items per lane and, per started session, an element of `order` and two offsets. It writes 17
// bytes per lane, coalesced. 512 lanes x 50 steps: 0.8 MB, 0.2 us at the H200's 4.8 TB/s. Bottleneck: latency. A step
// in which a lane starts a session is a chain of three dependent reads and some barriers, about 2 us. 50 steps take 0.1
// ms (estimated).
//
// Hazards: an error must leave lane_session, lane_position and cursor unchanged, so they are written at the end, after
// all checks. Other threads may not have read the cursor yet, so thread 0 overwrites it after a barrier.
template <typename item_t>
__global__ void __launch_bounds__(kMaxSessionThreads) session_batch_kernel(SessionBatchArguments args) {
  GRF_SHARED(counts, int[kMaxSessionThreads / 32]);
  GRF_SHARED(order_indices, int64_t[kMaxSessionThreads]);
  SessionLane* lanes = args.scratch;
  if (lanes == nullptr) {
    GRF_DYNAMIC_SHARED(shared_lanes, SessionLane);
    lanes = shared_lanes;
  }
  const auto* items = static_cast<const item_t*>(args.items);
  int64_t cursor = *args.cursor;  // the same in every thread
  GRF_DEVICE_CHECK(cursor >= 0 && cursor <= args.order_length, "cursor: must be in [0, length of order]");
  for (int64_t lane = threadIdx.x; lane < args.n_lanes; lane += blockDim.x) lanes[lane] = read_lane(args, lane);

  for (int64_t step = 0; step < args.steps; ++step) {
    for (int64_t first = 0; first < args.n_lanes; first += blockDim.x) {
      const int64_t lane = first + threadIdx.x;
      const bool exists = lane < args.n_lanes;
      SessionLane state = exists ? lanes[lane] : SessionLane{args.order_length, 0, 0};
      bool live = state.order_index != args.order_length;
      const bool starts = live && (state.order_index == -1 || state.position + 1 == state.end);
      int n_starting;
      const int rank = rank_in_block(starts, counts, &n_starting);
      if (n_starting > 0) {
        const int n_found = find_sessions(args, n_starting, &cursor, order_indices, counts);
        if (starts) {
          live = rank < n_found;
          state = {args.order_length, 0, 0};
          if (live) {
            const EventRange session = session_events(args, order_indices[rank]);
            state = {order_indices[rank], session.begin, session.end};
          }
        }
      }
      if (!exists) continue;
      const int64_t output = step * args.n_lanes + lane;
      args.inputs[output] = live ? static_cast<int64_t>(items[state.position]) : -1;
      args.targets[output] = live ? static_cast<int64_t>(items[state.position + 1]) : -1;
      args.reset[output] = live && starts;
      state.position += live;
      lanes[lane] = state;
    }
  }
  for (int64_t lane = threadIdx.x; lane < args.n_lanes; lane += blockDim.x) {
    args.lane_session[lane * args.session_stride] = lanes[lane].order_index;
    args.lane_position[lane * args.position_stride] = lanes[lane].position;
  }
  __syncthreads();  // all threads have read the cursor
  if (threadIdx.x == 0) *args.cursor = cursor;
}

void run_session_batch(const SessionBatchArguments& args, cudaStream_t stream) {
  const int64_t n_warps = (args.n_lanes + 31) / 32, max_warps = kMaxSessionThreads / 32;
  const auto threads = static_cast<unsigned>(32 * (n_warps < max_warps ? n_warps : max_warps));
  const size_t shared_bytes = args.scratch == nullptr ? static_cast<size_t>(args.n_lanes) * sizeof(SessionLane) : 0;
  if (args.items_are_int64) {
    GRF_LAUNCH((session_batch_kernel<int64_t>), /*grid=*/1, threads, shared_bytes, stream, args);
  } else {
    GRF_LAUNCH((session_batch_kernel<int32_t>), /*grid=*/1, threads, shared_bytes, stream, args);
  }
}

}  // namespace grf::cuda
