// Session-parallel mini-batches, played block after block. Specification: gru4rec_fast/ops/session_batch.py.
#pragma once

#include <ATen/core/Tensor.h>

#include <cstdint>
#include <optional>
#include <vector>

#include "session_batch/session_batch.h"

namespace grf {

// Checks shapes, dtypes and devices of the operator's arguments; ValueError names one that does not fit.
void check_sessions(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                    const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor);

// Plays a log from the place that the operator's state tensors hold. Nothing is written to them before `write_state`,
// so that a log found to be broken half way leaves them as they were.
class SessionBatcher {
 public:
  // ValueError names an argument that does not fit.
  SessionBatcher(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor);

  int64_t n_lanes() const { return static_cast<int64_t>(lanes_.size()); }

  // The next `steps` steps: inputs, targets and reset [steps, n_lanes]; -1 and false in dead lanes.
  void play(int64_t steps, int64_t* inputs, int64_t* targets, bool* reset);

  void write_state() const;

 private:
  struct Range {
    int64_t begin, end;
  };
  Range session(int64_t place) const;
  void read_state();
  bool refill(SessionLane& lane);
  template <typename item_t>
  void play_items(const item_t* items, int64_t steps, int64_t* inputs, int64_t* targets, bool* reset);

  at::Tensor items_, offsets_, order_;  // order: undefined where every session is played, in the log's own order
  at::Tensor lane_session_, lane_position_, cursor_;
  const int64_t *bounds_, *sequence_;  // of offsets; of order, or null
  int64_t n_sessions_, n_played_;
  int64_t unstarted_ = 0;
  std::vector<SessionLane> lanes_;
};

}  // namespace grf
