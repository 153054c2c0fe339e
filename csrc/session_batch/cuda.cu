// Session-parallel mini-batches: the whole schedule of lanes on the device. Specification:
// gru4rec_fast/ops/session_batch.py.
#include "common/simt.cuh"
#include "session_batch/session_batch.h"

namespace grf::cuda {

constexpr int kMostSessionThreads = 512;

struct SessionRange {
  int64_t begin, end;
};

__device__ __forceinline__ SessionRange session_at(const SessionBatch& batch, int64_t place) {
  const int64_t played = batch.order == nullptr ? place : batch.order[place];
  GRF_DEVICE_CHECK(played >= 0 && played < batch.n_sessions, "order: names a session that offsets do not hold");
  const SessionRange range{batch.offsets[played], batch.offsets[played + 1]};
  GRF_DEVICE_CHECK(0 <= range.begin && range.begin <= range.end && range.end <= batch.n_events,
                   "offsets: a session is no range of the items");
  return range;
}

__device__ __forceinline__ SessionLane read_lane(const SessionBatch& batch, int64_t lane) {
  const int64_t place = batch.lane_session[lane * batch.session_stride];
  const int64_t position = batch.lane_position[lane * batch.position_stride];
  GRF_DEVICE_CHECK(place >= -1 && place <= batch.n_played, "lane_session: beyond the sessions to play");
  if (place == -1 || place == batch.n_played) return {place, position, position + 1};  // no next event
  const SessionRange session = session_at(batch, place);
  GRF_DEVICE_CHECK(session.begin <= position && position < session.end, "lane_position: outside of its session");
  return {place, position, session.end};
}

// How many threads before this one have the flag, and in `total` how many of the block. Every thread must call it;
// counts: shared, one number for each warp.
__device__ __forceinline__ int rank_in_block(bool flag, int* counts, int* total) {
  const int lane = static_cast<int>(threadIdx.x % 32), warp = static_cast<int>(threadIdx.x / 32);
  const unsigned flags = __ballot_sync(kAllLanes, flag);
  if (lane == 0) counts[warp] = __popc(flags);
  __syncthreads();
  int before = 0, all = 0;
  for (int i = 0; i < static_cast<int>(blockDim.x / 32); ++i) {
    const int count = counts[i];
    before += i < warp ? count : 0;
    all += count;
  }
  __syncthreads();  // before the counts are written again
  *total = all;
  return before + __popc(flags & ((1u << lane) - 1));
}

// Finds the next `wanted` sessions of two or more events; places[i]: the i-th of them. Moves the cursor behind what
// was looked at, which is no more than that many lanes would have looked at one after another, and returns how many
// were found: fewer only where the cursor has come to the end.
__device__ __forceinline__ int find_sessions(const SessionBatch& batch, int wanted, int64_t* cursor, int64_t* places,
                                             int* counts) {
  int found = 0;
  while (found < wanted && *cursor < batch.n_played) {
    const int64_t place = *cursor + static_cast<int64_t>(threadIdx.x);
    bool fits = false;
    if (static_cast<int>(threadIdx.x) < wanted - found && place < batch.n_played) {
      const SessionRange session = session_at(batch, place);
      fits = session.end - session.begin >= 2;
    }
    int fitting;
    const int rank = rank_in_block(fits, counts, &fitting);
    if (fits) places[found + rank] = place;
    *cursor = min(*cursor + (wanted - found), batch.n_played);
    found += fitting;
  }
  __syncthreads();
  return found;
}

// Plays all steps.
//
// Launch: one block of one dimension, a multiple of 32 threads; dynamic shared memory for n_lanes SessionLanes unless
// `scratch` is given. Lane l belongs to thread l % blockDim, so that only the shared places and counts pass between
// threads. Lanes that start a session at the same step are ranked in lane order and take the sessions in that order. A
// step reads two items per lane and, per started session, its place in the order and its two offsets; it writes 17
// bytes per lane, side by side. Bound by the latency of a step's dependent loads, not by bytes. The state is written
// last of all.
template <typename item_t>
__global__ void __launch_bounds__(kMostSessionThreads) play_sessions_kernel(SessionBatch batch) {
  GRF_SHARED(counts, int[kMostSessionThreads / 32]);
  GRF_SHARED(places, int64_t[kMostSessionThreads]);
  SessionLane* lanes = batch.scratch;
  if (lanes == nullptr) {
    GRF_DYNAMIC_SHARED(in_shared, SessionLane);
    lanes = in_shared;
  }
  const auto* items = static_cast<const item_t*>(batch.items);
  int64_t cursor = *batch.cursor;  // the same in every thread
  GRF_DEVICE_CHECK(cursor >= 0 && cursor <= batch.n_played, "cursor: beyond the sessions to play");
  for (int64_t lane = threadIdx.x; lane < batch.n_lanes; lane += blockDim.x) lanes[lane] = read_lane(batch, lane);

  for (int64_t step = 0; step < batch.steps; ++step) {
    for (int64_t first = 0; first < batch.n_lanes; first += blockDim.x) {
      const int64_t lane = first + threadIdx.x;
      const bool mine = lane < batch.n_lanes;
      SessionLane me = mine ? lanes[lane] : SessionLane{batch.n_played, 0, 0};
      bool live = me.place != batch.n_played;
      const bool starts = live && me.position + 1 == me.end;
      int starting;
      const int rank = rank_in_block(starts, counts, &starting);
      if (starting > 0) {
        const int found = find_sessions(batch, starting, &cursor, places, counts);
        if (starts) {
          live = rank < found;
          me = {batch.n_played, 0, 0};
          if (live) {
            const SessionRange session = session_at(batch, places[rank]);
            me = {places[rank], session.begin, session.end};
          }
        }
      }
      if (!mine) continue;
      const int64_t at = step * batch.n_lanes + lane;
      batch.inputs[at] = live ? static_cast<int64_t>(items[me.position]) : -1;
      batch.targets[at] = live ? static_cast<int64_t>(items[me.position + 1]) : -1;
      batch.reset[at] = live && starts;
      me.position += live;
      lanes[lane] = me;
    }
  }
  for (int64_t lane = threadIdx.x; lane < batch.n_lanes; lane += blockDim.x) {
    batch.lane_session[lane * batch.session_stride] = lanes[lane].place;
    batch.lane_position[lane * batch.position_stride] = lanes[lane].position;
  }
  __syncthreads();  // every thread has read the cursor
  if (threadIdx.x == 0) *batch.cursor = cursor;
}

void play_sessions(const SessionBatch& batch, cudaStream_t stream) {
  const int64_t warps = (batch.n_lanes + 31) / 32;
  const auto threads =
      static_cast<unsigned>(32 * (warps < kMostSessionThreads / 32 ? warps : kMostSessionThreads / 32));
  const size_t shared = batch.scratch == nullptr ? static_cast<size_t>(batch.n_lanes) * sizeof(SessionLane) : 0;
  if (batch.items_are_wide) {
    GRF_LAUNCH((play_sessions_kernel<int64_t>), 1, threads, shared, stream, batch);
  } else {
    GRF_LAUNCH((play_sessions_kernel<int32_t>), 1, threads, shared, stream, batch);
  }
}

}  // namespace grf::cuda
