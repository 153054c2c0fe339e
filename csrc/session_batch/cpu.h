// Session-parallel mini-batches on the CPU, for the operator and for the fused training step. Specification:
// gru4rec_fast/ops/session_batch.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "session_batch/session_batch.h"

namespace grf {

// Checks shapes, dtypes and devices of the operator's arguments. Raises ValueError.
void check_sessions(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                    const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor);

// Makes the mini-batches of an epoch. The tensors lane_session, lane_position and cursor hold the position in the epoch
// (see session_batch.cpp). Only `write_state` writes them, so that an error in the log leaves them unchanged.
class SessionBatcher {
 public:
  // Reads the position. The arguments are those of the operator. Raises ValueError.
  SessionBatcher(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                 const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor);

  int64_t n_lanes() const { return static_cast<int64_t>(lanes_.size()); }

  // Writes inputs, targets and reset [steps, n_lanes] of the next `steps` steps. A dead lane gets -1, -1 and false.
  void make_steps(int64_t steps, int64_t* inputs, int64_t* targets, bool* reset);

  // Writes the new position to the tensors.
  void write_state() const;

  // Returns to the position that the tensors hold. Allocates nothing, since the number of lanes is the same.
  void read_state();

 private:
  // The events of a session: items [begin, end).
  struct EventRange {
    int64_t begin, end;
  };
  EventRange session_events(int64_t order_index) const;
  bool start_next_session(SessionLane& lane);
  template <typename item_t>
  void make_steps_from(const item_t* items, int64_t steps, int64_t* inputs, int64_t* targets, bool* reset);

  at::Tensor items_, offsets_, order_;  // order_ is undefined if all sessions are used in the log's order
  at::Tensor lane_session_, lane_position_, cursor_;
  const int64_t *offsets_data_, *order_data_;  // order_data_ is null if order_ is undefined
  int64_t n_sessions_, order_length_;
  int64_t next_order_index_ = 0;  // index in `order` of the next session to start: the value of cursor_
  std::vector<SessionLane> lanes_;
};

}  // namespace grf
