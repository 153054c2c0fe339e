// The NGCF layer on the CPU, forward and backward. Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// After the product with the graph's matrix (laplacian_propagation/propagate.h), rows are taken a block at a time, which stays in
// the cache from what the weights are multiplied by to E', and in the backward pass from the gradient of E' to those of
// the sides. Kept for the backward pass are the sides and a byte per unit; what the weights were multiplied by is made
// again. Gradients of the weights are summed within parts that are cut by shape alone, and these in order: they have
// the same bits for any number of threads.
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

constexpr int64_t kRows = 192;     // of a block
constexpr int64_t kMaxParts = 16;  // of the rows, for the gradients of the weights

struct ForwardScratch;
struct BackwardScratch;

// Calls run(first, count) for blocks of rows, on all threads.
template <typename Run>
void for_blocks(int64_t n_rows, const Run& run) {
  at::parallel_for(0, (n_rows + kRows - 1) / kRows, 1, [&](int64_t begin, int64_t end) {
    for (int64_t block = begin; block < end; ++block) run(block * kRows, std::min(kRows, n_rows - block * kRows));
  });
}

}  // namespace

template <typename T>
void ngcf_forward(const NgcfLayer<T>& layer, const T* weights, const T* bias, bool per_term, T* out, uint8_t* code) {
  const int64_t in = layer.rows.width, width = layer.units.width;
  const Matrix<T> first{weights, width}, second{weights + in * width, width};
  for_blocks(layer.rows.n_rows, [&](int64_t begin, int64_t count) {
    Scratch<T, ForwardScratch> scratch(kRows * (2 * in + 2 * width));
    T* inputs = scratch.take(kRows * 2 * in);
    T* sums = scratch.take(kRows * width);
    T* second_sums = per_term ? scratch.take(kRows * width) : nullptr;
    GRF_DISPATCH(combine_rows<T>)(layer, begin, count, inputs);
    multiply<T>(count, width, per_term ? in : 2 * in, {inputs, 2 * in}, first, sums, width);
    if (per_term) multiply<T>(count, width, in, {inputs + in, 2 * in}, second, second_sums, width);
    GRF_DISPATCH(activate_rows<T>)(layer, bias, begin, count, sums, second_sums, out, code);
  });
}

template <typename T>
void ngcf_backward(const NgcfLayer<T>& layer, const T* transposed, bool per_term, const T* grad_out,
                   const uint8_t* code, const NgcfGradients<T>& grads) {
  const int64_t in = layer.rows.width, width = layer.units.width, n_rows = layer.rows.n_rows;
  const int64_t size = 2 * in * width + 2 * width;
  const int64_t n_blocks = (n_rows + kRows - 1) / kRows, n_parts = std::min(kMaxParts, n_blocks);
  std::vector<T> sums(std::max<int64_t>(n_parts, 1) * size);
  const auto run = [&](int64_t begin, int64_t count, T* grad_weights) {
    T* grad_bias = grad_weights + 2 * in * width;
    Scratch<T, BackwardScratch> scratch(kRows * (4 * in + 2 * width));
    T* inputs = scratch.take(kRows * 2 * in);
    T* grad_inputs = scratch.take(kRows * 2 * in);
    GRF_DISPATCH(combine_rows<T>)(layer, begin, count, inputs);
    const int n_terms = per_term ? 2 : 1;
    for (int term = 0; term < n_terms; ++term) {
      T* before = scratch.take(kRows * width);
      GRF_DISPATCH(unactivate_rows<T>)
      (layer, count, grad_out + begin * width, code + begin * width, term == 0 ? kFirstPositive : kSecondPositive,
       before, grad_bias + term * width);
      const int64_t from = term * in, n = per_term ? in : 2 * in;  // which of the inputs this term is made of
      multiply<T>(count, n, width, {before, width}, {transposed + from, 2 * in}, grad_inputs + from, 2 * in);
      multiply<T>(n, width, count, {inputs + from, 1, 2 * in}, {before, width}, grad_weights + from * width, width,
                  true);
    }
    GRF_DISPATCH(separate_rows<T>)(layer, begin, count, grad_inputs, grads.p, grads.q, grads.own);
  };
  at::parallel_for(0, n_parts, 1, [&](int64_t first_part, int64_t end_part) {
    for (int64_t part = first_part; part < end_part; ++part) {
      for (int64_t block = part * n_blocks / n_parts; block < (part + 1) * n_blocks / n_parts; ++block) {
        run(block * kRows, std::min(kRows, n_rows - block * kRows), sums.data() + part * size);
      }
    }
  });
  for (int64_t part = 1; part < n_parts; ++part) {
    for (int64_t i = 0; i < size; ++i) sums[i] += sums[part * size + i];
  }
  std::copy_n(sums.data(), 2 * in * width, grads.weights);
  const T* bias = sums.data() + 2 * in * width;  // in one sum, both biases have one gradient
  std::copy_n(bias, width, grads.bias_1);
  std::copy_n(bias + (per_term ? width : 0), width, grads.bias_2);
}

#define GRF_INSTANTIATE(T)                                                                 \
  template void ngcf_forward(const NgcfLayer<T>&, const T*, const T*, bool, T*, uint8_t*); \
  template void ngcf_backward(const NgcfLayer<T>&, const T*, bool, const T*, const uint8_t*, const NgcfGradients<T>&);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf
