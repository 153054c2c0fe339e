// Session-parallel mini-batches on the CPU. Specification: gru4rec_fast/reference/session_batch.py.
#include <ATen/core/Tensor.h>
#include <ATen/ops/empty.h>
#include <torch/library.h>

#include <optional>
#include <tuple>
#include <vector>

namespace grf {
namespace {

struct Range {
  int64_t begin;
  int64_t end;
};

// The log, and the order in which its sessions are played.
struct Playlist {
  const int64_t* offsets;
  const int64_t* order;  // nullptr: every session, in the log's own order
  int64_t n_events;
  int64_t n_sessions;
  int64_t n_played;

  Range session(int64_t place) const {
    const int64_t played = order == nullptr ? place : order[place];
    TORCH_CHECK_VALUE(played >= 0 && played < n_sessions, "order[", place, "]=", played, ": offsets hold ", n_sessions,
                      " sessions");
    const Range range{offsets[played], offsets[played + 1]};
    TORCH_CHECK_VALUE(0 <= range.begin && range.begin <= range.end && range.end <= n_events, "offsets[", played, ":",
                      played + 2, "]=[", range.begin, ", ", range.end, "]: no range of the ", n_events, " items");
    return range;
  }
};

// What a lane plays: lane_session and lane_position of the specification, and where its session ends.
struct Lane {
  int64_t place;
  int64_t position;
  int64_t end;
};

std::vector<Lane> read_lanes(const Playlist& playlist, const at::Tensor& lane_session,
                             const at::Tensor& lane_position) {
  const at::Tensor places = lane_session.contiguous(), positions = lane_position.contiguous();
  const int64_t* place = places.const_data_ptr<int64_t>();
  const int64_t* position = positions.const_data_ptr<int64_t>();
  std::vector<Lane> lanes(places.numel());
  for (size_t i = 0; i < lanes.size(); ++i) {
    TORCH_CHECK_VALUE(place[i] >= -1 && place[i] <= playlist.n_played, "lane_session[", i, "]=", place[i],
                      ": must be in [-1, ", playlist.n_played, "]");
    lanes[i] = {place[i], position[i], position[i] + 1};  // a lane that has not started has no next event
    if (place[i] == -1 || place[i] == playlist.n_played) continue;
    const Range session = playlist.session(place[i]);
    TORCH_CHECK_VALUE(session.begin <= position[i] && position[i] < session.end, "lane_position[", i, "]=", position[i],
                      ": its session is [", session.begin, ", ", session.end, ")");
    lanes[i].end = session.end;
  }
  return lanes;
}

void write_lanes(const std::vector<Lane>& lanes, const at::Tensor& lane_session, const at::Tensor& lane_position) {
  int64_t* place = lane_session.mutable_data_ptr<int64_t>();
  int64_t* position = lane_position.mutable_data_ptr<int64_t>();
  for (size_t i = 0; i < lanes.size(); ++i) {
    place[i * lane_session.stride(0)] = lanes[i].place;
    position[i * lane_position.stride(0)] = lanes[i].position;
  }
}

// Gives the lane the next session of two or more events, or marks it dead; returns whether it lives.
bool refill(const Playlist& playlist, Lane& lane, int64_t& unstarted) {
  while (unstarted < playlist.n_played) {
    const Range session = playlist.session(unstarted);
    lane = {unstarted++, session.begin, session.end};
    if (session.end - session.begin >= 2) return true;
  }
  lane = {playlist.n_played, 0, 0};
  return false;
}

template <typename item_t>
void play(const Playlist& playlist, const item_t* items, std::vector<Lane>& lanes, int64_t& unstarted, int64_t steps,
          int64_t* inputs, int64_t* targets, bool* reset) {
  for (int64_t t = 0; t < steps; ++t) {
    for (Lane& lane : lanes) {
      bool live = lane.place != playlist.n_played;
      const bool starts = live && lane.position + 1 == lane.end;
      if (starts) live = refill(playlist, lane, unstarted);
      *inputs++ = live ? items[lane.position] : -1;
      *targets++ = live ? items[lane.position + 1] : -1;
      *reset++ = live && starts;
      lane.position += live;
    }
  }
}

void check_indices(const at::Tensor& tensor, const char* name) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.scalar_type() == at::kLong, name, ": must be a one-dimensional int64 ",
                    "tensor, not ", tensor.scalar_type(), " ", tensor.sizes());
}

std::tuple<at::Tensor, at::Tensor, at::Tensor> session_batch(const at::Tensor& items, const at::Tensor& offsets,
                                                             const std::optional<at::Tensor>& order,
                                                             const at::Tensor& lane_session,
                                                             const at::Tensor& lane_position, const at::Tensor& cursor,
                                                             int64_t steps) {
  TORCH_CHECK_VALUE(items.dim() == 1 && (items.scalar_type() == at::kInt || items.scalar_type() == at::kLong),
                    "items: must be a one-dimensional int32 or int64 tensor, not ", items.scalar_type(), " ",
                    items.sizes());
  check_indices(offsets, "offsets");
  if (order) check_indices(*order, "order");
  check_indices(lane_session, "lane_session");
  check_indices(lane_position, "lane_position");
  check_indices(cursor, "cursor");
  const int64_t n_lanes = lane_session.numel();
  TORCH_CHECK_VALUE(offsets.numel() >= 1, "offsets: must hold at least the 0 that ends no session");
  TORCH_CHECK_VALUE(n_lanes >= 1, "lane_session: there must be at least one lane");
  TORCH_CHECK_VALUE(lane_position.numel() == n_lanes, "lane_position: must have the ", n_lanes,
                    " elements of lane_session, not ", lane_position.numel());
  TORCH_CHECK_VALUE(cursor.numel() == 1, "cursor: must have one element, not ", cursor.numel());
  TORCH_CHECK_VALUE(steps >= 0, "steps=", steps, ": must not be negative");

  const at::Tensor log = items.contiguous(), bounds = offsets.contiguous();
  const at::Tensor sessions = order ? order->contiguous() : at::Tensor();
  const Playlist playlist{bounds.const_data_ptr<int64_t>(), order ? sessions.const_data_ptr<int64_t>() : nullptr,
                          log.numel(), bounds.numel() - 1, order ? sessions.numel() : bounds.numel() - 1};
  int64_t unstarted = *cursor.const_data_ptr<int64_t>();
  TORCH_CHECK_VALUE(unstarted >= 0 && unstarted <= playlist.n_played, "cursor=", unstarted, ": must be in [0, ",
                    playlist.n_played, "], the number of sessions to play");
  std::vector<Lane> lanes = read_lanes(playlist, lane_session, lane_position);

  const at::Tensor inputs = at::empty({steps, n_lanes}, offsets.options());
  const at::Tensor targets = at::empty({steps, n_lanes}, offsets.options());
  const at::Tensor reset = at::empty({steps, n_lanes}, offsets.options().dtype(at::kBool));
  const auto run = [&](const auto* events) {
    play(playlist, events, lanes, unstarted, steps, inputs.mutable_data_ptr<int64_t>(),
         targets.mutable_data_ptr<int64_t>(), reset.mutable_data_ptr<bool>());
  };
  if (log.scalar_type() == at::kInt) {
    run(log.const_data_ptr<int32_t>());
  } else {
    run(log.const_data_ptr<int64_t>());
  }
  // Only now, so that a log found to be broken half way leaves the state as it was.
  write_lanes(lanes, lane_session, lane_position);
  *cursor.mutable_data_ptr<int64_t>() = unstarted;
  return {inputs, targets, reset};
}

TORCH_LIBRARY_IMPL(gru4rec_fast, CPU, m) {
  m.impl("session_batch", &session_batch);
}

}  // namespace
}  // namespace grf
