// The NGCF layer on the CPU, forward and backward. Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// First, laplacian_propagation/tensors.h multiplies the features by the graph's matrices, which gives the propagated
// features. Then threads loop over blocks of rows. The block's inputs (see ngcf_layer.h), the products of inputs and
// weights, and the output stay in the cache, as do a block's gradients in the backward pass. The forward pass saves the
// propagated features and a byte of flags per unit; the backward pass recomputes the inputs. Gradients of the weights
// are summed within chunks of consecutive blocks, then over the chunks in order. The number of chunks depends only on
// n_rows, so the gradients have the same bits for any number of threads. Bottleneck: the products with the weights.
#include "ngcf_layer/ngcf_layer.h"

#include <ATen/Parallel.h>

#include <algorithm>
#include <cstdint>
#include <vector>

#include "common/philox.h"
#include "common/scratch.h"
#include "common/simd.h"
#include "matrix/product.h"

#if GRF_X86_ISAS
#include <immintrin.h>
#endif

#define GRF_KERNEL "ngcf_layer/cpu_kernel.inc"
#include "common/foreach_isa.h"

namespace grf {
namespace {

constexpr int64_t kRowsPerBlock = 192;
constexpr int64_t kMaxChunks = 16;  // maximum number of chunks of blocks; each has its own sum of weight gradients

// Tags of the buffers that Scratch keeps for each thread.
struct ForwardScratch;
struct BackwardScratch;

// Calls run(first_row, n_rows) for each block of rows, in parallel.
template <typename Run>
void for_blocks(int64_t n_rows, const Run& run) {
  at::parallel_for(0, (n_rows + kRowsPerBlock - 1) / kRowsPerBlock, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) {
      run(block * kRowsPerBlock, std::min(kRowsPerBlock, n_rows - block * kRowsPerBlock));
    }
  });
}

}  // namespace

template <typename T>
void ngcf_forward(const NgcfLayer<T>& layer, const T* weights, const T* bias, bool per_term, T* out, uint8_t* flags) {
  const int64_t n_in = layer.rows.n_in, n_out = layer.units.n_out;
  const Matrix<T> weights_1{weights, n_out}, weights_2{weights + n_in * n_out, n_out};
  for_blocks(layer.rows.n_rows, [&](int64_t begin, int64_t count) {
    Scratch<T, ForwardScratch> scratch(kRowsPerBlock * (2 * n_in + 2 * n_out));
    T* inputs = scratch.take(kRowsPerBlock * 2 * n_in);
    T* product_1 = scratch.take(kRowsPerBlock * n_out);
    T* product_2 = per_term ? scratch.take(kRowsPerBlock * n_out) : nullptr;
    GRF_DISPATCH(make_inputs<T>)(layer, begin, count, inputs);
    multiply<T>(count, n_out, per_term ? n_in : 2 * n_in, {inputs, 2 * n_in}, weights_1, product_1, n_out);
    if (per_term) multiply<T>(count, n_out, n_in, {inputs + n_in, 2 * n_in}, weights_2, product_2, n_out);
    GRF_DISPATCH(activate<T>)(layer, bias, begin, count, product_1, product_2, out, flags);
  });
}

template <typename T>
void ngcf_backward(const NgcfLayer<T>& layer, const T* transposed_weights, bool per_term, const T* grad_out,
                   const uint8_t* flags, const NgcfGradients<T>& grads) {
  const int64_t n_in = layer.rows.n_in, n_out = layer.units.n_out, n_rows = layer.rows.n_rows;
  const int64_t size = 2 * n_in * n_out + 2 * n_out;  // number of elements of both weights and both biases
  const int64_t n_blocks = (n_rows + kRowsPerBlock - 1) / kRowsPerBlock, n_chunks = std::min(kMaxChunks, n_blocks);
  std::vector<T> sums(std::max<int64_t>(n_chunks, 1) * size);  // gradients of weights and biases, for each chunk
  // Processes a block of rows. Adds the gradients of weights and biases to grad_weights [size].
  const auto run = [&](int64_t begin, int64_t count, T* grad_weights) {
    T* grad_bias = grad_weights + 2 * n_in * n_out;
    Scratch<T, BackwardScratch> scratch(kRowsPerBlock * (4 * n_in + 2 * n_out));
    T* inputs = scratch.take(kRowsPerBlock * 2 * n_in);
    T* grad_inputs = scratch.take(kRowsPerBlock * 2 * n_in);
    GRF_DISPATCH(make_inputs<T>)(layer, begin, count, inputs);
    const int n_products = per_term ? 2 : 1;
    for (int product = 0; product < n_products; ++product) {
      T* grad_sums = scratch.take(kRowsPerBlock * n_out);  // gradients of the activation's arguments
      GRF_DISPATCH(activate_backward<T>)
      (layer, count, grad_out + begin * n_out, flags + begin * n_out, product == 0 ? kFirstPositive : kSecondPositive,
       grad_sums, grad_bias + product * n_out);
      const int64_t first_column = product * n_in, n_columns = per_term ? n_in : 2 * n_in;  // of `inputs`
      multiply<T>(count, n_columns, n_out, {grad_sums, n_out}, {transposed_weights + first_column, 2 * n_in},
                  grad_inputs + first_column, 2 * n_in);
      multiply<T>(n_columns, n_out, count, {inputs + first_column, 1, 2 * n_in}, {grad_sums, n_out},
                  grad_weights + first_column * n_out, n_out, /*add=*/true);
    }
    GRF_DISPATCH(make_inputs_backward<T>)(layer, begin, count, grad_inputs, grads.propagated_p, grads.propagated_q,
                                          grads.self_features);
  };
  at::parallel_for(0, n_chunks, 1, [&](int64_t first_chunk, int64_t end_chunk) {
    for (int64_t chunk = first_chunk; chunk < end_chunk; ++chunk) {
      for (int64_t block = chunk * n_blocks / n_chunks; block < (chunk + 1) * n_blocks / n_chunks; ++block) {
        run(block * kRowsPerBlock, std::min(kRowsPerBlock, n_rows - block * kRowsPerBlock), sums.data() + chunk * size);
      }
    }
  });
  for (int64_t chunk = 1; chunk < n_chunks; ++chunk) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[chunk * size + i];
  }
  std::copy_n(sums.data(), 2 * n_in * n_out, grads.weights);
  const T* grad_bias = sums.data() + 2 * n_in * n_out;  // without per_term, both biases have the same gradient
  std::copy_n(grad_bias, n_out, grads.bias_1);
  std::copy_n(grad_bias + (per_term ? n_out : 0), n_out, grads.bias_2);
}

#define GRF_INSTANTIATE(T)                                                                 \
  template void ngcf_forward(const NgcfLayer<T>&, const T*, const T*, bool, T*, uint8_t*); \
  template void ngcf_backward(const NgcfLayer<T>&, const T*, bool, const T*, const uint8_t*, const NgcfGradients<T>&);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
