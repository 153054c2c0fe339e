// Launches the GRU's CUDA kernels and chooses their launch shapes. A lane is one of the sessions that are processed in
// parallel.
#include "gru/cuda.cuh"

#include "gru/all_steps.cuh"
#include "gru/one_step.cuh"

namespace grf::cuda {
namespace {

#ifdef __CUDACC__
// With at most kMaxSingleLaneBlocks lanes, each lane gets a block, and an H200 (132 multiprocessors) runs all blocks at
// the same time. With more lanes, kLanesPerBlock lanes share a block. Blocks then may run one after another, if only
// one fits on a multiprocessor. With more than kMaxLanesInOneLaunch lanes, each step takes a product by torch and a
// launch instead. 2048 is an estimate of the point where this becomes faster.
constexpr int64_t kMaxSingleLaneBlocks = 128, kMaxLanesInOneLaunch = 2048;
#else  // emulation on the CPU: small, so that small tests reach all kernels
constexpr int64_t kMaxSingleLaneBlocks = 4;
#endif

// Returns the largest shared memory of a block on the current GPU, in bytes.
int64_t max_shared_bytes() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "gru");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "gru");
  return bytes;
}

constexpr int kLanesPerBlock = 4;

int lanes_per_block(int64_t lanes) {
  return lanes <= kMaxSingleLaneBlocks ? 1 : kLanesPerBlock;
}

// Calls launch(per_block, blocks, threads, shared), which launches a kernel that processes all steps. The arguments are
// the number of lanes per block, of blocks, of threads per block and of bytes of shared memory per block.
template <typename T, typename LaunchKernel>
void launch_blocks(const GruLayer<T>& layer, const LaunchKernel& launch) {
  const int64_t lanes = layer.lanes, hidden = layer.hidden;
  if (lanes == 0 || hidden == 0) return;
  const int per_block = lanes_per_block(lanes);
  const int64_t warps = (3 * hidden + 31) / 32, max_warps = kGruLanesThreads / 32;
  launch(per_block, static_cast<unsigned>((lanes - 1) / per_block + 1),
         static_cast<unsigned>(32 * (warps < max_warps ? warps : max_warps)),
         static_cast<size_t>(gru_shared_elements(static_cast<int>(hidden), per_block)) * sizeof(T));
}

}  // namespace

bool gru_runs_in_one_launch(int64_t lanes, int64_t hidden, int64_t element_bytes) {
#ifdef __CUDACC__
  if (lanes > kMaxLanesInOneLaunch) return false;
#endif
  // No GPU has enough shared memory for the weights of more units. The limit also ensures that `hidden` fits in an int.
  constexpr int64_t kMaxHidden = 512;
  return hidden <= kMaxHidden &&
         gru_shared_elements(static_cast<int>(hidden), lanes_per_block(lanes)) * element_bytes <= max_shared_bytes();
}

template <typename T>
void launch_gru_all_steps(const GruForward<T>& forward, cudaStream_t stream) {
  launch_blocks(forward.layer, [&](int per_block, unsigned blocks, unsigned threads, size_t shared) {
    if (per_block == 1) {
      GRF_LAUNCH((gru_lanes_kernel<T, 1>), blocks, threads, shared, stream, forward);
    } else {
      GRF_LAUNCH((gru_lanes_kernel<T, kLanesPerBlock>), blocks, threads, shared, stream, forward);
    }
  });
}

template <typename T>
void launch_gru_all_steps(const GruBackward<T>& backward, cudaStream_t stream) {
  launch_blocks(backward.layer, [&](int per_block, unsigned blocks, unsigned threads, size_t shared) {
    if (per_block == 1) {
      GRF_LAUNCH((gru_lanes_backward_kernel<T, 1>), blocks, threads, shared, stream, backward);
    } else {
      GRF_LAUNCH((gru_lanes_backward_kernel<T, kLanesPerBlock>), blocks, threads, shared, stream, backward);
    }
  });
}

template <typename T>
void launch_gru_step(const GruForward<T>& forward, int64_t t, bool second_launch, cudaStream_t stream) {
  const int64_t n_units = forward.layer.lanes * forward.layer.hidden;  // units of all lanes
  if (n_units == 0) return;
  const unsigned blocks = blocks_for(n_units, kGruThreads);
  if (forward.layer.reset_after) {
    GRF_LAUNCH((gru_reset_after_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  } else if (!second_launch) {
    GRF_LAUNCH((gru_reset_before_gates_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  } else {
    GRF_LAUNCH((gru_reset_before_output_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  }
}

template <typename T>
void launch_gru_step(const GruBackward<T>& backward, int64_t t, bool second_launch, cudaStream_t stream) {
  const int64_t n_units = backward.layer.lanes * backward.layer.hidden;  // units of all lanes
  if (n_units == 0) return;
  const unsigned blocks = blocks_for(n_units, kGruThreads);
  if (backward.layer.reset_after) {
    GRF_LAUNCH((gru_reset_after_backward_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  } else if (!second_launch) {
    GRF_LAUNCH((gru_reset_before_backward_z_n_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  } else {
    GRF_LAUNCH((gru_reset_before_backward_r_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  }
}

template <typename T>
void launch_gru_one_step(GruOneStep<T> step, cudaStream_t stream) {
  const GruLayer<T>& layer = step.forward.layer;
  if (layer.lanes == 0) return;
  step.wide_input = is_wide<T>(step.input, {step.x, step.weight_ih});
  step.wide_state = is_wide<T>(layer.hidden, {layer.state, layer.weight});
  // At least one block of units: the scored states also have columns if H = 0.
  const int64_t unit_tiles = std::max((layer.hidden + kStepUnits - 1) / kStepUnits, int64_t{1});
  const dim3 grid(static_cast<unsigned>(unit_tiles), static_cast<unsigned>((layer.lanes - 1) / kStepLanes + 1));
  GRF_LAUNCH((gru_one_step_kernel<T>), grid, kGruStepThreads, 0, stream, step);
}

#define GRF_INSTANTIATE(T)                                                              \
  template void launch_gru_all_steps<T>(const GruForward<T>&, cudaStream_t);            \
  template void launch_gru_all_steps<T>(const GruBackward<T>&, cudaStream_t);           \
  template void launch_gru_step<T>(const GruForward<T>&, int64_t, bool, cudaStream_t);  \
  template void launch_gru_step<T>(const GruBackward<T>&, int64_t, bool, cudaStream_t); \
  template void launch_gru_one_step<T>(GruOneStep<T>, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
