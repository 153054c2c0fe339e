#include "sparse_update/cuda.cuh"

namespace grf::cuda {
template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream) {
  if (touched.n == 0 || touched.table.width == 0) return;
  constexpr int kWide = kWideColumns<T>;
  const bool wide =
      is_wide<T>(touched.table.width, {touched.grad, touched.table.weight, touched.table.first, touched.table.second});
  const int columns = wide ? kWide : 1;
  const unsigned blocks = blocks_for(touched.n * (touched.table.width / columns), kUpdateThreads);
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
