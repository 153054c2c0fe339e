// Session-parallel mini-batches on the CPU. Specification: gru4rec_fast/ops/session_batch.py.
//
// The outer loop is over steps, the inner one over lanes (sessions processed in parallel), since lanes whose sessions
// end at the same step take the next sessions in lane order. The bottleneck is a random read per event. One thread is
// enough, since the model's computations take far longer.
#include "session_batch/cpu.h"

namespace grf {

SessionBatcher::SessionBatcher(const at::Tensor& items, const at::Tensor& offsets,
                               const std::optional<at::Tensor>& order, const at::Tensor& lane_session,
                               const at::Tensor& lane_position, const at::Tensor& cursor)
    : lane_session_(lane_session), lane_position_(lane_position), cursor_(cursor) {
  check_sessions(items, offsets, order, lane_session, lane_position, cursor);
  items_ = items.contiguous(), offsets_ = offsets.contiguous();
  if (order) order_ = order->contiguous();
  offsets_data_ = offsets_.const_data_ptr<int64_t>();
  order_data_ = order ? order_.const_data_ptr<int64_t>() : nullptr;
  n_sessions_ = offsets.numel() - 1;
  order_length_ = order ? order_.numel() : n_sessions_;
  read_state();
}

SessionBatcher::EventRange SessionBatcher::session_events(int64_t order_index) const {
  const int64_t session = order_data_ == nullptr ? order_index : order_data_[order_index];
  TORCH_CHECK_VALUE(session >= 0 && session < n_sessions_, "order[", order_index, "]=", session,
                    ": the log has sessions 0 to ", n_sessions_ - 1);
  const EventRange range{offsets_data_[session], offsets_data_[session + 1]};
  TORCH_CHECK_VALUE(0 <= range.begin && range.begin <= range.end && range.end <= items_.numel(), "offsets[", session,
                    ":", session + 2, "]=[", range.begin, ", ", range.end, "]: not a range of the ", items_.numel(),
                    " items");
  return range;
}

void SessionBatcher::read_state() {
  next_order_index_ = *cursor_.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(next_order_index_ >= 0 && next_order_index_ <= order_length_, "cursor=", next_order_index_,
                    ": must be in [0, ", order_length_, "], the length of order");
  const int64_t* order_indices = lane_session_.const_data_ptr<int64_t>();
  const int64_t* positions = lane_position_.const_data_ptr<int64_t>();
  lanes_.resize(lane_session_.numel());
  for (size_t i = 0; i < lanes_.size(); ++i) {
    const int64_t order_index = order_indices[i * lane_session_.stride(0)];
    const int64_t position = positions[i * lane_position_.stride(0)];
    TORCH_CHECK_VALUE(order_index >= -1 && order_index <= order_length_, "lane_session[", i, "]=", order_index,
                      ": must be in [-1, ", order_length_, "], the length of order");
    // The position of a lane without a session may be any number, so nothing is computed from it.
    lanes_[i] = {order_index, position, /*end=*/0};
    if (order_index == -1 || order_index == order_length_) continue;
    const EventRange range = session_events(order_index);
    TORCH_CHECK_VALUE(range.begin <= position && position < range.end, "lane_position[", i, "]=", position,
                      ": outside its session, items[", range.begin, ":", range.end, "]");
    lanes_[i].end = range.end;
  }
}

void SessionBatcher::write_state() const {
  int64_t* order_index = lane_session_.mutable_data_ptr<int64_t>();
  int64_t* position = lane_position_.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < lanes_.size(); ++i) {
    order_index[i * lane_session_.stride(0)] = lanes_[i].order_index;
    position[i * lane_position_.stride(0)] = lanes_[i].position;
  }
  *cursor_.mutable_data_ptr<int64_t>() = next_order_index_;
}

// Starts the next session of two or more events in the given lane. If no such session is left, marks the lane as dead
// and returns false.
bool SessionBatcher::start_next_session(SessionLane& lane) {
  while (next_order_index_ < order_length_) {
    const EventRange range = session_events(next_order_index_);
    lane = {next_order_index_++, range.begin, range.end};
    if (range.end - range.begin >= 2) return true;
  }
  lane = {order_length_, 0, 0};
  return false;
}

template <typename item_t>
void SessionBatcher::make_steps_from(const item_t* items, int64_t steps, int64_t* inputs, int64_t* targets,
                                     bool* reset) {
  for (int64_t t = 0; t < steps; ++t) {
    for (SessionLane& lane : lanes_) {
      bool live = lane.order_index != order_length_;
      const bool starts = live && (lane.order_index == -1 || lane.position + 1 == lane.end);  // starts a session
      if (starts) live = start_next_session(lane);
      *inputs++ = live ? items[lane.position] : -1;
      *targets++ = live ? items[lane.position + 1] : -1;
      *reset++ = live && starts;
      lane.position += live;
    }
  }
}

void SessionBatcher::make_steps(int64_t steps, int64_t* inputs, int64_t* targets, bool* reset) {
  if (items_.scalar_type() == at::kInt) {
    make_steps_from(items_.const_data_ptr<int32_t>(), steps, inputs, targets, reset);
  } else {
    make_steps_from(items_.const_data_ptr<int64_t>(), steps, inputs, targets, reset);
  }
}

}  // namespace grf
