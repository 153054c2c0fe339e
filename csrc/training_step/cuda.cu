#include "training_step/cuda.cuh"

namespace grf::cuda {
namespace {

template <typename T>
bool has_wide_rows(const GatheredRows<T>& gathered) {
  return is_wide<T>(gathered.width, {gathered.table, gathered.mask, gathered.rows}) &&
         is_aligned(gathered.as_16, kWideBytes / 2);
}

}  // namespace

template <typename T>
void step_gather(const StepGather<T>& gather, cudaStream_t stream) {
  const int64_t numbers = gather.inputs.n * gather.inputs.width + gather.items.n * gather.items.width;
  by_columns<T>(has_wide_rows(gather.inputs) && has_wide_rows(gather.items), numbers, kStepThreads,
                [&](auto columns, unsigned blocks) {
                  GRF_LAUNCH((step_gather_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream,
                             gather);
                });
}

template <typename T>
void step_settle(const StepSettle<T>& block, cudaStream_t stream) {
  GRF_LAUNCH((step_settle_kernel<T>), 1, 32, 0, stream, block);
}

template <typename T>
void step_apply(const StepApply<T>& tensors, cudaStream_t stream) {
  const int64_t numbers = tensors.n == 0 ? 0 : tensors.of[tensors.n - 1].end;
  if (numbers == 0) return;
  GRF_LAUNCH((step_apply_kernel<T>), blocks_for(numbers, kStepThreads), kStepThreads, 0, stream, tensors);
}

template <typename T>
void step_rows(const StepRows<T>& touched, cudaStream_t stream) {
  const bool wide = is_wide<T>(
      touched.width, {touched.grad_inputs, touched.grad_items, touched.weight, touched.accumulator, touched.velocity});
  const int64_t biases = touched.bias != nullptr ? touched.n : 0;
  by_columns<T>(
      wide, touched.n * touched.width, kStepThreads,
      [&](auto columns, unsigned blocks) {
        GRF_LAUNCH((step_rows_kernel<T, decltype(columns)::value>), blocks, kStepThreads, 0, stream, touched);
      },
      biases);
}

#define GRF_INSTANTIATE(T)                                          \
  template void step_gather<T>(const StepGather<T>&, cudaStream_t); \
  template void step_settle<T>(const StepSettle<T>&, cudaStream_t); \
  template void step_apply<T>(const StepApply<T>&, cudaStream_t);   \
  template void step_rows<T>(const StepRows<T>&, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
