// The CUDA kernels of the NGCF layer, for the element-wise operations before and after its products with the weights.
// Specification: gru4rec_fast/ops/ngcf_layer.py. E are the nodes' features, P and Q the propagation matrices, E' is the
// output; its elements are units, and each has flags (ngcf_layer.h).
//
// Launch of all kernels: one dimension, any number of blocks of kNgcfThreads, no shared memory. Threads loop over
// groups of N neighboring columns of a row, and load or store a whole group by one instruction. Neighboring threads
// take neighboring groups, so all accesses are coalesced, except those to the nodes' own features, whose rows are
// scattered. Loops that divide are not unrolled: most threads run one iteration, and the divisions of several
// iterations would spill registers.
//
// Times in the comments are estimates for an H200 (4.8 TB/s) and all 71,000 nodes of Gowalla, n_in = n_out = 64,
// float32. Bytes are counted in matrices [n_rows, 64] of 18 MB. Every kernel is bound by memory bandwidth unless its
// comment says otherwise.
#include "common/columns.cuh"
#include "common/partition_point.h"
#include "common/philox.h"
#include "common/simt.cuh"
#include "ngcf_layer/ngcf_layer.h"

namespace grf::cuda {

constexpr int kNgcfThreads = 256;

// Row and first column of the i-th group of N columns in a matrix of `width` columns.
template <int N>
struct ColumnGroup {
  int64_t row, column;

  __device__ __forceinline__ ColumnGroup(int64_t i, int64_t width) {
    row = quotient(i, width / N);
    column = (i - row * (width / N)) * N;
  }
};

// Writes the index of each element of `rows` in `columns`, by bisection, and checks that `columns` contains it. Threads
// loop over rows. Bytes per row: 16, and 8 log2(n_columns) from the cache: 1.1 MB, 0.2 us. Bottleneck: the latency of
// log2(n_columns) dependent reads.
__global__ void __launch_bounds__(kNgcfThreads)
    find_rows_kernel(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* indices) {
  for (int64_t i = global_thread(); i < n_rows; i += all_threads()) {
    const int64_t row = rows[i];
    const int64_t index = partition_point(n_columns, [&](int64_t j) { return columns[j] < row; });
    GRF_DEVICE_CHECK(index < n_columns && columns[index] == row, "rows: a node is not among the columns");
    indices[i] = index;
  }
}

// Computes inputs = [P E, (Q E) * E]. Bytes: two matrices read (three if P and Q differ by more than the identity) and
// two written: 73 MB, 15 us.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads) make_inputs_kernel(NgcfRows<T> rows, T* inputs) {
  const int64_t n = rows.n_rows * (rows.n_in / N);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const ColumnGroup<N> group(i, rows.n_in);
    const int64_t offset = group.row * rows.n_in + group.column;
    const auto self = load_columns<T, N>(rows.self_row(group.row) + group.column);
    auto p = load_columns<T, N>(rows.propagated_p + offset);
    auto q = rows.propagated_q == rows.propagated_p ? p : load_columns<T, N>(rows.propagated_q + offset);
    for (int j = 0; j < N; ++j) {
      if (rows.p_adds_identity) p.at[j] += self.at[j];
      if (rows.q_adds_identity) q.at[j] += self.at[j];
      q.at[j] *= self.at[j];
    }
    T* input = inputs + group.row * 2 * rows.n_in + group.column;
    store_columns(input, p);
    store_columns(input + rows.n_in, q);
  }
}

// Returns LeakyReLU of x; NaN if x is NaN.
template <typename T>
__device__ __forceinline__ T leaky_relu(T x, T slope) {
  return x > 0 ? x : slope * x;
}

// Adds the biases, applies LeakyReLU and message dropout, and writes E' and the flags. Bytes: one matrix read (two with
// per_term), one matrix and a byte per unit written: 41 MB, 9 us. Bottleneck with dropout: ten rounds of Philox per
// unit, some 80 integer instructions: about 20 us.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    activate_kernel(NgcfUnits<T> units, MessageDropout dropout, ActivationOperands<T> operands) {
  const int64_t n = units.n_rows * (units.n_out / N);
  const uint32_t step = first_step_word(dropout.step, dropout.counter);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const ColumnGroup<N> group(i, units.n_out);
    const auto node = static_cast<uint32_t>(dropout.nodes == nullptr ? group.row : dropout.nodes[group.row]);
    const auto bias_1 = load_columns<T, N>(operands.bias_1 + group.column);
    const auto bias_2 = load_columns<T, N>(operands.bias_2 + group.column);
    auto out = load_columns<T, N>(operands.out + i * N);
    Columns<T, N> product_2 = {};
    if (operands.product_2 != nullptr) product_2 = load_columns<T, N>(operands.product_2 + i * N);
    Columns<uint8_t, N> flags;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const philox::Words philox_counter{dropout.stream, step, node, static_cast<uint32_t>(group.column + j)};
      const bool keeps =
          dropout.drop_threshold == 0 || philox::philox4x32(philox_counter, dropout.seed).w0 >= dropout.drop_threshold;
      const T sum_1 = out.at[j] + (operands.product_2 == nullptr ? bias_1.at[j] + bias_2.at[j] : bias_1.at[j]);
      T result = leaky_relu(sum_1, units.slope);
      int unit_flags = (sum_1 > 0 ? kFirstPositive : 0) | (keeps ? kKept : 0);
      if (operands.product_2 != nullptr) {
        const T sum_2 = product_2.at[j] + bias_2.at[j];
        result += leaky_relu(sum_2, units.slope);
        if (sum_2 > 0) unit_flags |= kSecondPositive;
      }
      out.at[j] = result * (keeps ? units.keep_scale : T{0});
      flags.at[j] = static_cast<uint8_t>(unit_flags);
    }
    store_columns(operands.out + i * N, out);
    store_columns(operands.flags + i * N, flags);
  }
}

// Computes the gradients of the activation's arguments from the gradient of E'. Bytes: one matrix and a byte per unit
// read, one matrix written (two with per_term): 41 MB, 9 us.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    activate_backward_kernel(NgcfUnits<T> units, const T* grad_out, const uint8_t* flags, T* grad_sum_1,
                             T* grad_sum_2) {
  const int64_t n = units.n_rows * (units.n_out / N);
  const T scale = units.keep_scale, leak_scale = scale * units.slope;
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const auto grad = load_columns<T, N>(grad_out + i * N);
    const auto unit_flags = load_columns<uint8_t, N>(flags + i * N);
    Columns<T, N> grad_1, grad_2;
    for (int j = 0; j < N; ++j) {
      const bool keeps = (unit_flags.at[j] & kKept) != 0;
      grad_1.at[j] = grad.at[j] * (!keeps ? T{0} : (unit_flags.at[j] & kFirstPositive) != 0 ? scale : leak_scale);
      grad_2.at[j] = grad.at[j] * (!keeps ? T{0} : (unit_flags.at[j] & kSecondPositive) != 0 ? scale : leak_scale);
    }
    store_columns(grad_sum_1 + i * N, grad_1);
    if (grad_sum_2 != nullptr) store_columns(grad_sum_2 + i * N, grad_2);
  }
}

// Computes the gradients of the propagated features and of the rows' own features from the gradient of the inputs.
// Bytes: four matrices read, two written (three if P and Q differ by more than the identity): 109 MB, 23 us.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    make_inputs_backward_kernel(NgcfRows<T> rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_self) {
  const int64_t n = rows.n_rows * (rows.n_in / N);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const ColumnGroup<N> group(i, rows.n_in);
    const int64_t offset = group.row * rows.n_in + group.column;
    const T* grad_input = grad_inputs + group.row * 2 * rows.n_in + group.column;
    const auto self = load_columns<T, N>(rows.self_row(group.row) + group.column);
    const auto propagated_q = load_columns<T, N>(rows.propagated_q + offset);
    const auto grad_product = load_columns<T, N>(grad_input + rows.n_in);
    auto p = load_columns<T, N>(grad_input);  // p, q and self_sum become the gradients that are written
    Columns<T, N> q, self_sum;
    for (int j = 0; j < N; ++j) {
      q.at[j] = grad_product.at[j] * self.at[j];
      self_sum.at[j] =
          grad_product.at[j] * (rows.q_adds_identity ? propagated_q.at[j] + 2 * self.at[j] : propagated_q.at[j]);
      if (rows.p_adds_identity) self_sum.at[j] += p.at[j];
      if (grad_q == nullptr) p.at[j] += q.at[j];
    }
    store_columns(grad_p + offset, p);
    store_columns(grad_self + offset, self_sum);
    if (grad_q != nullptr) store_columns(grad_q + offset, q);
  }
}

void find_rows(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* indices,
               cudaStream_t stream) {
  if (n_rows == 0) return;
  GRF_LAUNCH(find_rows_kernel, blocks_for(n_rows, kNgcfThreads), kNgcfThreads, 0, stream, rows, n_rows, columns,
             n_columns, indices);
}

template <typename T>
void make_inputs(const NgcfRows<T>& rows, T* inputs, cudaStream_t stream) {
  const bool wide = is_wide<T>(rows.n_in, {rows.features, rows.propagated_p, rows.propagated_q, inputs});
  launch_columns<T>(wide, rows.n_rows * rows.n_in, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((make_inputs_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, rows, inputs);
  });
}

template <typename T>
void activate(const NgcfUnits<T>& units, const MessageDropout& dropout, const ActivationOperands<T>& operands,
              cudaStream_t stream) {
  const bool wide = is_wide<T>(units.n_out, {operands.bias_1, operands.bias_2, operands.product_2, operands.out}) &&
                    is_aligned(operands.flags, kWideColumns<T>);
  launch_columns<T>(wide, units.n_rows * units.n_out, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((activate_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, units, dropout,
               operands);
  });
}

template <typename T>
void activate_backward(const NgcfUnits<T>& units, const T* grad_out, const uint8_t* flags, T* grad_sum_1, T* grad_sum_2,
                       cudaStream_t stream) {
  const bool wide = is_wide<T>(units.n_out, {grad_out, grad_sum_1, grad_sum_2}) && is_aligned(flags, kWideColumns<T>);
  launch_columns<T>(wide, units.n_rows * units.n_out, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((activate_backward_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, units,
               grad_out, flags, grad_sum_1, grad_sum_2);
  });
}

template <typename T>
void make_inputs_backward(const NgcfRows<T>& rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_self,
                          cudaStream_t stream) {
  const bool wide = is_wide<T>(rows.n_in, {rows.features, rows.propagated_q, grad_inputs, grad_p, grad_q, grad_self});
  launch_columns<T>(wide, rows.n_rows * rows.n_in, kNgcfThreads, [&](auto columns, unsigned blocks) {
    GRF_LAUNCH((make_inputs_backward_kernel<T, decltype(columns)::value>), blocks, kNgcfThreads, 0, stream, rows,
               grad_inputs, grad_p, grad_q, grad_self);
  });
}

#define GRF_INSTANTIATE(T)                                                                                        \
  template void make_inputs(const NgcfRows<T>&, T*, cudaStream_t);                                                \
  template void activate(const NgcfUnits<T>&, const MessageDropout&, const ActivationOperands<T>&, cudaStream_t); \
  template void activate_backward(const NgcfUnits<T>&, const T*, const uint8_t*, T*, T*, cudaStream_t);           \
  template void make_inputs_backward(const NgcfRows<T>&, const T*, T*, T*, T*, cudaStream_t);
GRF_INSTANTIATE(float)
GRF_INSTANTIATE(double)
#undef GRF_INSTANTIATE

}  // namespace grf::cuda
