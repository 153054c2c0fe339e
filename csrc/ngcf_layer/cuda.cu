// The NGCF layer's passes between its products. Specification: gru4rec_fast/ops/ngcf_layer.py.
//
// Launch, of all of them: one dimension, any number of blocks of any size. A thread takes N neighboring columns of a
// row, in strides of the grid, and reads and writes them at once; neighboring threads take neighboring columns, so
// that but for a row's own features, which begin anywhere, all of memory is passed through in order. Loops with a
// division are not unrolled: most threads have one turn, and four divisions at once do not fit in registers.
#include "common/columns.cuh"
#include "common/partition_point.h"
#include "common/philox.h"
#include "common/simt.cuh"
#include "ngcf_layer/ngcf_layer.h"

namespace grf::cuda {

constexpr int kNgcfThreads = 256;

// Where the i-th N columns of a matrix stand.
template <int N>
struct NgcfPlace {
  int64_t row, column;

  __device__ __forceinline__ NgcfPlace(int64_t i, int64_t width) {
    row = quotient(i, width / N);
    column = (i - row * (width / N)) * N;
  }
};

// Launch: one dimension, a thread per row. Counted bytes: 16 a row, and some 8 log2(n_columns), from cache.
__global__ void __launch_bounds__(kNgcfThreads)
    find_rows_kernel(const int64_t* rows, int64_t n_rows, const int64_t* columns, int64_t n_columns, int64_t* found) {
  for (int64_t i = global_thread(); i < n_rows; i += all_threads()) {
    const int64_t row = rows[i];
    const int64_t at = partition_point(n_columns, [&](int64_t j) { return columns[j] < row; });
    GRF_DEVICE_CHECK(at < n_columns && columns[at] == row, "rows: a node is not among the columns");
    found[i] = at;
  }
}

// Counted bytes, of each row: 2 width numbers read (3, where the sides are two) and 2 width written; 8 of own_at.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads) combine_sides_kernel(NgcfRows<T> rows, T* inputs) {
  const int64_t n = rows.n_rows * (rows.width / N);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const NgcfPlace<N> place(i, rows.width);
    const int64_t at = place.row * rows.width + place.column;
    const auto own = columns_at<T, N>(rows.own(place.row) + place.column);
    auto p = columns_at<T, N>(rows.side_p + at);
    auto q = rows.side_q == rows.side_p ? p : columns_at<T, N>(rows.side_q + at);
    for (int j = 0; j < N; ++j) {
      if (rows.p_adds_identity) p.at[j] += own.at[j];
      if (rows.q_adds_identity) q.at[j] += own.at[j];
      q.at[j] *= own.at[j];
    }
    T* to = inputs + place.row * 2 * rows.width + place.column;
    put_columns(to, p);
    put_columns(to + rows.width, q);
  }
}

// LeakyReLU; a NaN stays one.
template <typename T>
__device__ __forceinline__ T leaky(T x, T slope) {
  return x > 0 ? x : slope * x;
}

// Counted bytes, of each unit: a number read (two, where the terms are) and written, and a byte written. Where units
// are dropped their words take longer than that: each unit has one of its own, ten rounds of Philox.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    activate_units_kernel(NgcfUnits<T> units, MessageDropout dropout, NgcfSums<T> sums) {
  const int64_t n = units.n_rows * (units.width / N);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const NgcfPlace<N> place(i, units.width);
    const auto node = static_cast<uint32_t>(dropout.nodes == nullptr ? place.row : dropout.nodes[place.row]);
    const auto bias_1 = columns_at<T, N>(sums.bias_1 + place.column);
    const auto bias_2 = columns_at<T, N>(sums.bias_2 + place.column);
    auto out = columns_at<T, N>(sums.out + i * N);
    Columns<T, N> second = {};
    if (sums.second != nullptr) second = columns_at<T, N>(sums.second + i * N);
    Columns<uint8_t, N> code;
#pragma unroll
    for (int j = 0; j < N; ++j) {
      const philox::Words counter{dropout.stream, dropout.step, node, static_cast<uint32_t>(place.column + j)};
      const bool keeps = dropout.threshold == 0 || philox::philox4x32(counter, dropout.seed).w0 >= dropout.threshold;
      const T x = out.at[j] + (sums.second == nullptr ? bias_1.at[j] + bias_2.at[j] : bias_1.at[j]);
      T sum = leaky(x, units.slope);
      int bits = (x > 0 ? kFirstPositive : 0) | (keeps ? kKept : 0);
      if (sums.second != nullptr) {
        const T y = second.at[j] + bias_2.at[j];
        sum += leaky(y, units.slope);
        if (y > 0) bits |= kSecondPositive;
      }
      out.at[j] = sum * (keeps ? units.kept : T{0});
      code.at[j] = static_cast<uint8_t>(bits);
    }
    put_columns(sums.out + i * N, out);
    put_columns(sums.code + i * N, code);
  }
}

// Counted bytes, of each unit: a number and a byte read, a number written (two, where `second` is given).
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    unactivate_units_kernel(NgcfUnits<T> units, const T* grad, const uint8_t* code, T* first, T* second) {
  const int64_t n = units.n_rows * (units.width / N);
  const T leaks = units.kept * units.slope;
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const auto g = columns_at<T, N>(grad + i * N);
    const auto bits = columns_at<uint8_t, N>(code + i * N);
    Columns<T, N> x, y;
    for (int j = 0; j < N; ++j) {
      const bool keeps = (bits.at[j] & kKept) != 0;
      x.at[j] = g.at[j] * (!keeps ? T{0} : (bits.at[j] & kFirstPositive) != 0 ? units.kept : leaks);
      y.at[j] = g.at[j] * (!keeps ? T{0} : (bits.at[j] & kSecondPositive) != 0 ? units.kept : leaks);
    }
    put_columns(first + i * N, x);
    if (second != nullptr) put_columns(second + i * N, y);
  }
}

// Counted bytes, of each row: 4 width numbers read and 2 width written (3, where the sides are two); 8 of own_at.
template <typename T, int N>
__global__ void __launch_bounds__(kNgcfThreads)
    separate_gradients_kernel(NgcfRows<T> rows, const T* grad_inputs, T* grad_p, T* grad_q, T* grad_own) {
  const int64_t n = rows.n_rows * (rows.width / N);
#pragma unroll 1
  for (int64_t i = global_thread(); i < n; i += all_threads()) {
    const NgcfPlace<N> place(i, rows.width);
    const int64_t at = place.row * rows.width + place.column;
    const T* from = grad_inputs + place.row * 2 * rows.width + place.column;
    const auto own = columns_at<T, N>(rows.own(place.row) + place.column);
    const auto side = columns_at<T, N>(rows.side_q + at);
    const auto both = columns_at<T, N>(from + rows.width);
    auto p = columns_at<T, N>(from);
    Columns<T, N> q, grad;
    for (int j = 0; j < N; ++j) {
      q.at[j] = both.at[j] * own.at[j];
      grad.at[j] = both.at[j] * (rows.q_adds_identity ? side.at[j] + 2 * own.at[j] : side.at[j]);
      if (rows.p_adds_identity) grad.at[j] += p.at[j];
      if (grad_q == nullptr) p.at[j] += q.at[j];
    }
    put_columns(grad_p + at, p);
    put_columns(grad_own + at, grad);
    if (grad_q != nullptr) put_columns(grad_q + at, q);
  }
}

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
