#include "gru/cuda.cuh"

#include "gru/lanes.cuh"

namespace grf::cuda {
namespace {

#ifdef __CUDACC__
// Up to kGruLonelyLanes lanes each get a block of their own, which one wave of blocks does; beyond, kGruMostLanes share
// one. More than kGruManyLanes are several waves, and work enough for torch's products.
constexpr int64_t kGruLonelyLanes = 128, kGruManyLanes = 2048;

// What a block of this GPU can have.
int64_t most_shared() {
  int device = 0, bytes = 0;
  check_cuda(cudaGetDevice(&device), "gru");
  check_cuda(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "gru");
  return bytes;
}
#else
constexpr int64_t kGruLonelyLanes = 4;  // small problems have to come to all kernels

int64_t most_shared() {
  return 48 << 10;
}
#endif

constexpr int kGruMostLanes = 4;

int lanes_of_block(int64_t lanes) {
  return lanes <= kGruLonelyLanes ? 1 : kGruMostLanes;
}

template <typename Problem, typename Launch>
void launch_blocks(const Problem& problem, size_t bytes_of_number, const Launch& launch) {
  const int64_t lanes = problem.layer.lanes, hidden = problem.layer.hidden;
  if (lanes == 0 || hidden == 0) return;
  const int per_block = lanes_of_block(lanes);
  const int64_t warps = (3 * hidden + 31) / 32, most = kGruLanesThreads / 32;
  launch(per_block, static_cast<unsigned>((lanes - 1) / per_block + 1),
         static_cast<unsigned>(32 * (warps < most ? warps : most)),
         static_cast<size_t>(gru_shared_numbers(static_cast<int>(hidden), per_block)) * bytes_of_number);
}

}  // namespace

bool gru_in_one_launch(int64_t lanes, int64_t hidden, int64_t bytes_of_number) {
#ifdef __CUDACC__
  if (lanes > kGruManyLanes) return false;
#endif
  constexpr int64_t kBeyondAny = 512;  // units, whose weights no GPU's shared memory holds
  return hidden <= kBeyondAny &&
         gru_shared_numbers(static_cast<int>(hidden), lanes_of_block(lanes)) * bytes_of_number <= most_shared();
}

template <typename T>
void gru_all_steps(const GruForward<T>& forward, cudaStream_t stream) {
  launch_blocks(forward, sizeof(T), [&](int per_block, unsigned blocks, unsigned threads, size_t shared) {
    if (per_block == 1) {
      GRF_LAUNCH((gru_lanes_kernel<T, 1>), blocks, threads, shared, stream, forward);
    } else {
      GRF_LAUNCH((gru_lanes_kernel<T, kGruMostLanes>), blocks, threads, shared, stream, forward);
    }
  });
}

template <typename T>
void gru_all_steps(const GruBackward<T>& backward, cudaStream_t stream) {
  launch_blocks(backward, sizeof(T), [&](int per_block, unsigned blocks, unsigned threads, size_t shared) {
    if (per_block == 1) {
      GRF_LAUNCH((gru_lanes_backward_kernel<T, 1>), blocks, threads, shared, stream, backward);
    } else {
      GRF_LAUNCH((gru_lanes_backward_kernel<T, kGruMostLanes>), blocks, threads, shared, stream, backward);
    }
  });
}

template <typename T>
void gru_one_step(const GruForward<T>& forward, int64_t t, bool second, cudaStream_t stream) {
  const int64_t units = forward.layer.lanes * forward.layer.hidden;
  if (units == 0) return;
  const unsigned blocks = blocks_for(units, kGruThreads);
  if (forward.layer.after) {
    GRF_LAUNCH((gru_after_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  } else if (!second) {
    GRF_LAUNCH((gru_before_gates_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  } else {
    GRF_LAUNCH((gru_before_output_kernel<T>), blocks, kGruThreads, 0, stream, forward, t);
  }
}

template <typename T>
void gru_one_step(const GruBackward<T>& backward, int64_t t, bool second, cudaStream_t stream) {
  const int64_t units = backward.layer.lanes * backward.layer.hidden;
  if (units == 0) return;
  const unsigned blocks = blocks_for(units, kGruThreads);
  if (backward.layer.after) {
    GRF_LAUNCH((gru_after_backward_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  } else if (!second) {
    GRF_LAUNCH((gru_before_backward_output_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  } else {
    GRF_LAUNCH((gru_before_backward_reset_kernel<T>), blocks, kGruThreads, 0, stream, backward, t);
  }
}

#define GRF_INSTANTIATE(T)                                                          \
  template void gru_all_steps<T>(const GruForward<T>&, cudaStream_t);               \
  template void gru_all_steps<T>(const GruBackward<T>&, cudaStream_t);              \
  template void gru_one_step<T>(const GruForward<T>&, int64_t, bool, cudaStream_t); \
  template void gru_one_step<T>(const GruBackward<T>&, int64_t, bool, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
