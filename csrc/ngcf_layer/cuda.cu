#include "ngcf_layer/cuda.cuh"

namespace grf::cuda {
void find_rows(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* found,
               cudaStream_t stream) {
  if (n_rows == 0) return;
  GRF_LAUNCH(find_rows_kernel, blocks_for(n_rows, kNgcfThreads), kNgcfThreads, 0, stream, rows, n_rows, columns,
             n_columns, found);
}

template <typename T>
void combine_sides(const NgcfRows<T>& rows, T* inputs, cudaStream_t stream) {
  const bool wide = is_wide<T>(rows.width, {rows.features, rows.side_p, rows.side_q, inputs});
  by_columns<T>(wide, rows.n_rows * rows.width, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((combine_sides_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, rows, inputs);
  });
}

template <typename T>
void activate_units(const NgcfUnits<T>& units, const MessageDropout& dropout, const NgcfSums<T>& sums,
                    cudaStream_t stream) {
  const bool wide = is_wide<T>(units.width, {sums.bias_1, sums.bias_2, sums.second, sums.out}) &&
                    is_aligned(sums.code, kWideColumns<T>);
  by_columns<T>(wide, units.n_rows * units.width, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((activate_units_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, units, dropout,
               sums);
  });
}

template <typename T>
void unactivate_units(const NgcfUnits<T>& units, const T* grad, const uint8_t* code, T* first, T* second,
                      cudaStream_t stream) {
  const bool wide = is_wide<T>(units.width, {grad, first, second}) && is_aligned(code, kWideColumns<T>);
  by_columns<T>(wide, units.n_rows * units.width, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((unactivate_units_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, units, grad,
               code, first, second);
  });
}

template <typename T>
void separate_gradients(const NgcfRows<T>& rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_own,
                        cudaStream_t stream) {
  const bool wide = is_wide<T>(rows.width, {rows.features, rows.side_q, grad_inputs, grad_p, grad_q, grad_own});
  by_columns<T>(wide, rows.n_rows * rows.width, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((separate_gradients_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, rows,
               grad_inputs, grad_p, grad_q, grad_own);
  });
}

#define GRF_INSTANTIATE(T)                                                                                    \
  template void combine_sides(const NgcfRows<T>&, T*, cudaStream_t);                                          \
  template void activate_units(const NgcfUnits<T>&, const MessageDropout&, const NgcfSums<T>&, cudaStream_t); \
  template void unactivate_units(const NgcfUnits<T>&, const T*, const uint8_t*, T*, T*, cudaStream_t);        \
  template void separate_gradients(const NgcfRows<T>&, const T*, T*, T*, T*, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
