// Launch of the optimizer's kernel on the touched rows of a table.
#include "sparse_update/cuda.cuh"

namespace grf::cuda {

template <typename T, template <typename> class Options>
void update_rows(const TouchedRows<T>& touched, const Options<T>& options, cudaStream_t stream) {
  const RowTable<T>& table = touched.table;
  const bool wide = is_wide<T>(table.width, {touched.grad, table.weight, table.state_1, table.state_2});
  by_columns<T>(wide, touched.n * table.width, kUpdateThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((update_rows_kernel<T, decltype(columns)::value, Options>), blocks, kUpdateThreads, 0, stream, touched,
               options);
  });
}

#define GRF_INSTANTIATE(Options)                                                             \
  template void update_rows(const TouchedRows<float>&, const Options<float>&, cudaStream_t); \
  template void update_rows(const TouchedRows<double>&, const Options<double>&, cudaStream_t);
GRF_INSTANTIATE(AdagradOptions)
GRF_INSTANTIATE(AdamOptions)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
