// Session-parallel mini-batches on raw pointers. Specification: gru4rec_fast/ops/session_batch.py.
//
// A lane is one of the B columns of a mini-batch; it processes one session after another. `order` lists the sessions in
// the order in which lanes start them. A lane is dead if no session is left for it.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {  // gru4rec_fast

// The session of a lane, and the lane's position in it.
struct SessionLane {
  int64_t order_index;  // index of the session in `order`; -1 before the lane's first step, order_length if dead
  int64_t position;     // index in `items` of the lane's next input
  int64_t end;          // one past the last event of the session
};

namespace cuda {

struct SessionBatchArguments {
  const void* items;  // [n_events], int32 or int64
  bool items_are_int64;
  const int64_t* offsets;  // [n_sessions + 1]
  const int64_t* order;    // [order_length]; null: all sessions, in the log's order
  int64_t n_events, n_sessions, order_length;
  int64_t n_lanes, steps;
  // The position in the epoch, updated in-place. lane_session and lane_position are [n_lanes] with the strides below.
  // They hold order_index and position of each lane. cursor [1] is the index in `order` of the next session to start.
  int64_t *lane_session, *lane_position, *cursor;
  int64_t session_stride, position_stride;
  SessionLane* scratch;       // [n_lanes]; null: the lanes fit in shared memory
  int64_t *inputs, *targets;  // [steps, n_lanes], written
  bool* reset;                // [steps, n_lanes], written
};

// Maximum bytes of the lanes (SessionLane) in shared memory. With more lanes, they are in `scratch`.
constexpr int64_t kMaxSharedBytes = 40 << 10;

// Launches the kernel.
void run_session_batch(const SessionBatchArguments& args, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
