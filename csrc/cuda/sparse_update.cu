#include "cuda/sparse_update.cuh"

namespace grf::cuda {
namespace {

constexpr int kWideBytes = 16;

template <typename T>
bool is_wide(const TouchedRows<T>& touched) {
  const auto aligned = [](const T* memory) { return reinterpret_cast<uintptr_t>(memory) % kWideBytes == 0; };
  return touched.width * static_cast<int64_t>(sizeof(T)) % kWideBytes == 0 && aligned(touched.grad) &&
         aligned(touched.weight) && aligned(touched.first) && aligned(touched.second);
}

}  // namespace

template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream) {
  if (touched.n == 0 || touched.width == 0) return;
  constexpr int kWide = kWideBytes / static_cast<int>(sizeof(T));
  const int columns = is_wide(touched) ? kWide : 1;
  const unsigned blocks = blocks_for(touched.n * (touched.width / columns), kUpdateThreads);
  if (columns == kWide) {
    GRF_LAUNCH((update_rows_kernel<T, kWide, Options>), blocks, kUpdateThreads, 0, stream, touched, options);
  } else {
    GRF_LAUNCH((update_rows_kernel<T, 1, Options>), blocks, kUpdateThreads, 0, stream, touched, options);
  }
}

#define GRF_INSTANTIATE(Options)                                                             \
  template void update_rows(const TouchedRows<float>&, const Options<float>&, cudaStream_t); \
  template void update_rows(const TouchedRows<double>&, const Options<double>&, cudaStream_t);
GRF_INSTANTIATE(SgdOptions)
GRF_INSTANTIATE(AdagradOptions)
GRF_INSTANTIATE(RmspropOptions)
GRF_INSTANTIATE(AdamOptions)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
