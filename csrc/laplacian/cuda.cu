#include "laplacian/cuda.cuh"

namespace grf::cuda {
namespace {

template <typename T, typename index_t, int kColumns>
void multiply_slices(const LaplacianProduct& product, cudaStream_t stream) {
  const int64_t threads = 32 * (product.n_rows + most_segments(product.n_entries));
  const auto slices = static_cast<unsigned>((product.width - 1) / (32 * kColumns) + 1);
  GRF_LAUNCH((multiply_laplacian_kernel<T, index_t, kColumns>), dim3(blocks_for(threads, kLaplacianThreads), slices),
             kLaplacianThreads, 0, stream, product);
}

template <typename T, typename index_t>
void multiply(const LaplacianProduct& product, cudaStream_t stream) {
  if constexpr (sizeof(T) == 8) {
    multiply_slices<T, index_t, 1>(product, stream);  // more do not fit in registers everywhere
  } else if (product.width <= 32) {
    multiply_slices<T, index_t, 1>(product, stream);
  } else if (product.width <= 64) {
    multiply_slices<T, index_t, 2>(product, stream);
  } else {
    multiply_slices<T, index_t, 4>(product, stream);
  }
}

template <typename T>
void run(const LaplacianProduct& product, cudaStream_t stream) {
  using Sum = typename Feature<T>::Sum;
  const auto over = [](int64_t n) { return blocks_for(n, kLaplacianThreads); };
  if (product.n_nodes > 0) {
    GRF_LAUNCH((node_scales_kernel<Sum>), over(product.n_nodes), kLaplacianThreads, 0, stream, product);
  }
  if (product.n_columns > 0) {
    GRF_LAUNCH(place_columns_kernel, over(product.n_columns), kLaplacianThreads, 0, stream, product);
  }
  if (product.n_rows == 0) return;
  GRF_LAUNCH(list_segments_kernel, over(product.n_rows), kLaplacianThreads, 0, stream, product);
  if (product.width == 0) return;
  if (product.neighbours_are_wide) {
    multiply<T, int64_t>(product, stream);
  } else {
    multiply<T, int32_t>(product, stream);
  }
  if (most_segments(product.n_entries) > 0) {
    GRF_LAUNCH((add_segments_kernel<T>), blocks_for(most_segments(product.n_entries), 1), kLaplacianThreads, 0, stream,
               product);
  }
}

}  // namespace

void multiply_laplacian(const LaplacianProduct& product, cudaStream_t stream) {
  switch (product.type) {
    case FeatureType::float32:
      return run<float>(product, stream);
    case FeatureType::float64:
      return run<double>(product, stream);
    case FeatureType::bfloat16:
      return run<uint16_t>(product, stream);
  }
}

}  // namespace grf::cuda
