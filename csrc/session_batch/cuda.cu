#include "session_batch/cuda.cuh"

namespace grf::cuda {

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
