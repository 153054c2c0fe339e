// Launches the kernel of cuda.cuh, which updates the rows of a table that have gradients. `columns` is how many
// adjacent elements a thread processes at once (common/columns.cuh).
#include "sparse_update/cuda.cuh"

namespace grf::cuda {

template <typename T, template <typename> class Options>
void update_rows(const RowTable<T>& table, const SortedGradients<T>& gradients, const Options<T>& options,
                 cudaStream_t stream) {
  const bool wide = is_wide<T>(table.width, {gradients.grad, table.weight, table.state_1, table.state_2});
  launch_columns<T>(wide, gradients.n * table.width, kUpdateThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((update_rows_kernel<T, decltype(columns)::value, Options>), blocks, kUpdateThreads, 0, stream, table,
               gradients, options);
  });
}

#define GRF_INSTANTIATE(T, Options) \
  template void update_rows(const RowTable<T>&, const SortedGradients<T>&, const Options<T>&, cudaStream_t);
GRF_INSTANTIATE(float, AdagradOptions)
GRF_INSTANTIATE(double, AdagradOptions)
GRF_INSTANTIATE(float, AdamOptions)
GRF_INSTANTIATE(double, AdamOptions)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
