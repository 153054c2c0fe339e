// Session-parallel mini-batches on the CPU. Specification: gru4rec_fast/ops/session_batch.py.
#include "session_batch/cpu.h"

namespace grf {
SessionBatcher::SessionBatcher(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                             const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor)
    : lane_session_(lane_session), lane_position_(lane_position), cursor_(cursor) {
  check_sessions(items, offsets, order, lane_session, lane_position, cursor);
  items_ = items.contiguous(), offsets_ = offsets.contiguous();
  if (order) order_ = order->contiguous();
  bounds_ = offsets_.const_data_ptr<int64_t>();
  sequence_ = order ? order_.const_data_ptr<int64_t>() : nullptr;
  n_sessions_ = offsets.numel() - 1;
  n_played_ = order ? order_.numel() : n_sessions_;
  read_state();
}

SessionBatcher::Range SessionBatcher::session(int64_t place) const {
  const int64_t played = sequence_ == nullptr ? place : sequence_[place];
  TORCH_CHECK_VALUE(played >= 0 && played < n_sessions_, "order[", place, "]=", played, ": offsets hold ", n_sessions_,
                    " sessions");
  const Range range{bounds_[played], bounds_[played + 1]};
  TORCH_CHECK_VALUE(0 <= range.begin && range.begin <= range.end && range.end <= items_.numel(), "offsets[", played,
                    ":", played + 2, "]=[", range.begin, ", ", range.end, "]: no range of the ", items_.numel(),
                    " items");
  return range;
}

void SessionBatcher::read_state() {
  unstarted_ = *cursor_.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(unstarted_ >= 0 && unstarted_ <= n_played_, "cursor=", unstarted_, ": must be in [0, ", n_played_,
                    "], the number of sessions to play");
  const at::Tensor places = lane_session_.contiguous(), positions = lane_position_.contiguous();
  const int64_t* place = places.const_data_ptr<int64_t>();
  const int64_t* position = positions.const_data_ptr<int64_t>();
  lanes_.resize(places.numel());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    TORCH_CHECK_VALUE(place[i] >= -1 && place[i] <= n_played_, "lane_session[", i, "]=", place[i], ": must be in [-1, ",
                      n_played_, "]");
    lanes_[i] = {place[i], position[i], position[i] + 1};  // a lane that has not started has no next event
    if (place[i] == -1 || place[i] == n_played_) continue;
    const Range range = session(place[i]);
    TORCH_CHECK_VALUE(range.begin <= position[i] && position[i] < range.end, "lane_position[", i, "]=", position[i],
                      ": its session is [", range.begin, ", ", range.end, ")");
    lanes_[i].end = range.end;
  }
}

void SessionBatcher::write_state() const {
  int64_t* place = lane_session_.mutable_data_ptr<int64_t>();
  int64_t* position = lane_position_.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < lanes_.size(); ++i) {
    place[i * lane_session_.stride(0)] = lanes_[i].place;
    position[i * lane_position_.stride(0)] = lanes_[i].position;
  }
  *cursor_.mutable_data_ptr<int64_t>() = unstarted_;
}

// Gives the lane the next session of two or more events, or marks it dead; returns whether it lives.
bool SessionBatcher::refill(SessionLane& lane) {
  while (unstarted_ < n_played_) {
    const Range range = session(unstarted_);
    lane = {unstarted_++, range.begin, range.end};
    if (range.end - range.begin >= 2) return true;
  }
  lane = {n_played_, 0, 0};
  return false;
}

template <typename item_t>
void SessionBatcher::play_items(const item_t* items, int64_t steps, int64_t* inputs, int64_t* targets, bool* reset) {
  for (int64_t t = 0; t < steps; ++t) {
    for (SessionLane& lane : lanes_) {
      bool live = lane.place != n_played_;
      const bool starts = live && lane.position + 1 == lane.end;
      if (starts) live = refill(lane);
      *inputs++ = live ? items[lane.position] : -1;
      *targets++ = live ? items[lane.position + 1] : -1;
      *reset++ = live && starts;
      lane.position += live;
    }
  }
}

void SessionBatcher::play(int64_t steps, int64_t* inputs, int64_t* targets, bool* reset) {
  if (items_.scalar_type() == at::kInt) {
    play_items(items_.const_data_ptr<int32_t>(), steps, inputs, targets, reset);
  } else {
    play_items(items_.const_data_ptr<int64_t>(), steps, inputs, targets, reset);
  }
}

}  // namespace grf
