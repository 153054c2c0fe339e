// The operator session_batch: checks arguments and allocates results. Specification: gru4rec_fast/ops/session_batch.py.
//
// The position in the epoch is held by three tensors: lane_session and lane_position have the order_index and position
// of each SessionLane; `cursor` is the index in `order` of the next session to start. A call continues from the
// position and updates the tensors in-place. Before the update, the kernels check the values of the tensors, of `order`
// and of `offsets`.
#include "session_batch/session_batch.h"

#include <ATen/ops/empty.h>

#include <tuple>

#include "common/device.h"
#include "common/operator.h"
#include "session_batch/cpu.h"

namespace grf {
namespace {

void check_int64_vector(const at::Tensor& tensor, const char* name, const at::Device& device) {
  TORCH_CHECK_VALUE(tensor.dim() == 1 && tensor.scalar_type() == at::kLong, name,
                    " must be a one-dimensional int64 tensor, not ", tensor.scalar_type(), " ", tensor.sizes());
  TORCH_CHECK_VALUE(tensor.device() == device, name, " is on ", tensor.device(), ", not on ", device);
}

}  // namespace

void check_sessions(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                    const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor) {
  const at::Device device = items.device();
  TORCH_CHECK_VALUE(items.dim() == 1 && (items.scalar_type() == at::kInt || items.scalar_type() == at::kLong),
                    "items must be a one-dimensional int32 or int64 tensor, not ", items.scalar_type(), " ",
                    items.sizes());
  check_int64_vector(offsets, "offsets", device);
  if (order) check_int64_vector(*order, "order", device);
  check_int64_vector(lane_session, "lane_session", device);
  check_int64_vector(lane_position, "lane_position", device);
  check_int64_vector(cursor, "cursor", device);
  TORCH_CHECK_VALUE(offsets.numel() >= 1, "offsets must have n_sessions + 1 elements, not 0");
  TORCH_CHECK_VALUE(lane_session.numel() >= 1,
                    "lane_session must have at least one element: a mini-batch needs a lane");
  TORCH_CHECK_VALUE(lane_position.numel() == lane_session.numel(), "lane_position must have ", lane_session.numel(),
                    " elements, as lane_session has, not ", lane_position.numel());
  TORCH_CHECK_VALUE(cursor.numel() == 1, "cursor must have one element, not ", cursor.numel());
}

namespace {

// Computes inputs, targets and reset, and updates the position in the epoch.
template <Kernels kernels>
void fill_batches(const at::Tensor& items, const at::Tensor& offsets, const std::optional<at::Tensor>& order,
                  const at::Tensor& lane_session, const at::Tensor& lane_position, const at::Tensor& cursor,
                  int64_t steps, const at::Tensor& inputs, const at::Tensor& targets, const at::Tensor& reset) {
  if constexpr (kernels == Kernels::cpu) {
    SessionBatcher batcher(items, offsets, order, lane_session, lane_position, cursor);
    batcher.make_steps(steps, inputs.mutable_data_ptr<int64_t>(), targets.mutable_data_ptr<int64_t>(),
                       reset.mutable_data_ptr<bool>());
    batcher.write_state();
  } else {
    using namespace cuda;
    const at::Device device = items.device();
    const int64_t n_lanes = lane_session.numel();
    const DeviceGuard guard(device);
    const at::Tensor contiguous_items = items.contiguous(), contiguous_offsets = offsets.contiguous();
    const at::Tensor contiguous_order = order ? order->contiguous() : at::Tensor();
    const auto lane_bytes = n_lanes * static_cast<int64_t>(sizeof(SessionLane));
    at::Tensor scratch;  // undefined: the lanes fit in shared memory
    if (lane_bytes > kMaxSharedBytes) scratch = at::empty({lane_bytes}, offsets.options().dtype(at::kByte));
    const int64_t n_sessions = offsets.numel() - 1;
    const SessionBatchArguments args{
        .items = contiguous_items.const_data_ptr(),
        .items_are_int64 = items.scalar_type() == at::kLong,
        .offsets = contiguous_offsets.const_data_ptr<int64_t>(),
        .order = order ? contiguous_order.const_data_ptr<int64_t>() : nullptr,
        .n_events = items.numel(),
        .n_sessions = n_sessions,
        .order_length = order ? order->numel() : n_sessions,
        .n_lanes = n_lanes,
        .steps = steps,
        .lane_session = lane_session.mutable_data_ptr<int64_t>(),
        .lane_position = lane_position.mutable_data_ptr<int64_t>(),
        .cursor = cursor.mutable_data_ptr<int64_t>(),
        .session_stride = lane_session.stride(0),
        .position_stride = lane_position.stride(0),
        .scratch = scratch.defined() ? static_cast<SessionLane*>(scratch.mutable_data_ptr()) : nullptr,
        .inputs = inputs.mutable_data_ptr<int64_t>(),
        .targets = targets.mutable_data_ptr<int64_t>(),
        .reset = reset.mutable_data_ptr<bool>()};
    run_session_batch(args, current_stream(device));
  }
}

template <Kernels kernels>
std::tuple<at::Tensor, at::Tensor, at::Tensor> session_batch(const at::Tensor& items, const at::Tensor& offsets,
                                                             const std::optional<at::Tensor>& order,
                                                             const at::Tensor& lane_session,
                                                             const at::Tensor& lane_position, const at::Tensor& cursor,
                                                             int64_t steps) {
  check_sessions(items, offsets, order, lane_session, lane_position, cursor);
  TORCH_CHECK_VALUE(steps >= 0, "steps=", steps, ": must not be negative");
  const int64_t n_lanes = lane_session.numel();
  const at::Tensor inputs = at::empty({steps, n_lanes}, offsets.options());
  const at::Tensor targets = at::empty({steps, n_lanes}, offsets.options());
  const at::Tensor reset = at::empty({steps, n_lanes}, offsets.options().dtype(at::kBool));
  fill_batches<kernels>(items, offsets, order, lane_session, lane_position, cursor, steps, inputs, targets, reset);
  return {inputs, targets, reset};
}

GRF_REGISTER(session_batch)

}  // namespace
}  // namespace grf
