// The session-parallel schedule on raw pointers. Specification: gru4rec_fast/ops/session_batch.py.
#pragma once

#include <cstdint>

#include "common/stream.h"

namespace grf {

// What a lane plays while a call lasts.
struct SessionLane {
  int64_t place;     // in the order of the epoch; -1 before its first step, n_played when it is dead
  int64_t position;  // of its next input
  int64_t end;       // of its session
};

namespace cuda {

struct SessionBatch {
  const void* items;  // [n_events] of int32 or int64
  bool items_are_wide;
  const int64_t* offsets;  // [n_sessions + 1]
  const int64_t* order;    // [n_played], or null: every session, as they stand
  int64_t n_events, n_sessions, n_played;
  int64_t n_lanes, steps;
  int64_t* lane_session;  // [n_lanes], strided; updated, as are the next two
  int64_t* lane_position;
  int64_t* cursor;
  int64_t session_stride, position_stride;
  SessionLane* scratch;  // [n_lanes], or null where they fit in shared memory
  int64_t* inputs;       // [steps, n_lanes], written
  int64_t* targets;
  bool* reset;
};

// Lanes of more than this many bytes are kept in `scratch`.
constexpr int64_t kSessionSharedBytes = 40 << 10;

void play_sessions(const SessionBatch& batch, cudaStream_t stream);

}  // namespace cuda
}  // namespace grf
