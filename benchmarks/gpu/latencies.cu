// Measures the latencies of kernel launches, CUDA graph nodes, grid barriers and cluster barriers. Prints JSON, in ns.
//
//   nvcc -std=c++17 -O3 -arch=sm_90 latencies.cu -o latencies && ./latencies
//
// A training step consists of about a dozen small kernels. The latencies decide how to run them: as nodes of a CUDA
// graph, with or without programmatic dependent launch, or as phases of one persistent kernel, separated by grid
// barriers.
#include <cooperative_groups.h>
#include <cuda_runtime.h>

#include <algorithm>
#include <chrono>
#include <cstdio>
#include <cstdlib>
#include <functional>
#include <string>
#include <vector>

namespace cg = cooperative_groups;

// Ends the program with a message if a CUDA call fails.
#define CHECK(call)                                                                                  \
  do {                                                                                               \
    const cudaError_t error = (call);                                                                \
    if (error != cudaSuccess) {                                                                      \
      std::fprintf(stderr, "latencies.cu:%d: %s: %s\n", __LINE__, #call, cudaGetErrorString(error)); \
      std::exit(1);                                                                                  \
    }                                                                                                \
  } while (0)

constexpr int kNodes = 100;      // kernels per graph, or per sequence of launches
constexpr int kBarriers = 1000;  // barriers per launch. A second launch runs twice as many: the difference
                                 // of the two times has no launch overhead.
constexpr int kRepeats = 21;     // measurements per median
constexpr int kHostCalls = 50;   // calls per measurement of host time

// Does nothing. With programmatic dependent launch, the trigger allows the launch of the next kernel before this one
// ends, and cudaGridDependencySynchronize waits until the previous kernel has ended.
__global__ void empty() {
#if __CUDA_ARCH__ >= 900
  cudaTriggerProgrammaticLaunchCompletion();
  cudaGridDependencySynchronize();
#endif
}

// Runs n grid barriers of cooperative groups.
__global__ void grid_barriers(int n) {
  cg::grid_group grid = cg::this_grid();
  for (int i = 0; i < n; ++i) grid.sync();
}

// Runs n grid barriers that use one counter: in barrier i (from 1), one thread per block increments the counter and
// spins until the counter has reached i * gridDim.x.
__global__ void counter_barriers(int n, unsigned* counter) {
  for (int i = 1; i <= n; ++i) {
    __syncthreads();
    if (threadIdx.x == 0) {
      __threadfence();
      atomicAdd(counter, 1u);
      while (*reinterpret_cast<volatile unsigned*>(counter) < static_cast<unsigned>(i) * gridDim.x) {
      }
      __threadfence();
    }
    __syncthreads();
  }
}

// Runs n barriers of the thread block cluster.
__global__ void cluster_barriers(int n) {
#if __CUDA_ARCH__ >= 900
  cg::cluster_group cluster = cg::this_cluster();
  for (int i = 0; i < n; ++i) cluster.sync();
#endif
}

cudaStream_t stream;                  // all work is enqueued in this stream
std::vector<std::string> json_lines;  // the latencies measured so far

// Prints the latencies as JSON. main registers this function with atexit, so that it runs even if CHECK ends the
// program.
void print_json() {
  std::printf("{\n");
  for (size_t i = 0; i < json_lines.size(); ++i) {
    std::printf("%s%s\n", json_lines[i].c_str(), i + 1 < json_lines.size() ? "," : "");
  }
  std::printf("}\n");
}

// Adds a latency to the output.
void record(const std::string& name, double ns) {
  char line[160];
  std::snprintf(line, sizeof line, "  \"%s\": %.1f", name.c_str(), ns);
  json_lines.emplace_back(line);
}

// Returns the median device time of `work`, in ns.
double device_ns(const std::function<void()>& work) {
  cudaEvent_t start, end;
  CHECK(cudaEventCreate(&start));
  CHECK(cudaEventCreate(&end));
  std::vector<float> ms(kRepeats);
  for (int warm = 0; warm < 3; ++warm) work();
  for (float& time : ms) {
    CHECK(cudaEventRecord(start, stream));
    work();
    CHECK(cudaEventRecord(end, stream));
    CHECK(cudaEventSynchronize(end));
    CHECK(cudaEventElapsedTime(&time, start, end));
  }
  std::nth_element(ms.begin(), ms.begin() + kRepeats / 2, ms.end());
  return ms[kRepeats / 2] * 1e6;
}

// Launches the empty kernel. dependent: use programmatic dependent launch.
void launch_empty(int blocks, int threads, bool dependent) {
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeProgrammaticStreamSerialization;
  attribute.val.programmaticStreamSerializationAllowed = 1;
  cudaLaunchConfig_t config{};
  config.gridDim = blocks, config.blockDim = threads, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = dependent ? 1 : 0;
  CHECK(cudaLaunchKernelEx(&config, empty));
}

double host_ns(const std::function<void()>& enqueue);

// Captures a graph of kNodes empty kernels in sequence. Records the device time per node and the host's time to launch
// the graph. shape: the launch shape, as text.
void record_graph(const std::string& shape, int blocks, int threads, bool dependent) {
  cudaGraph_t graph;
  cudaGraphExec_t executable;
  CHECK(cudaStreamBeginCapture(stream, cudaStreamCaptureModeThreadLocal));
  for (int i = 0; i < kNodes; ++i) launch_empty(blocks, threads, dependent);
  CHECK(cudaStreamEndCapture(stream, &graph));
  CHECK(cudaGraphInstantiate(&executable, graph, 0));
  const auto launch = [&] { CHECK(cudaGraphLaunch(executable, stream)); };
  const std::string separator = dependent ? " with programmatic dependent launch, " : ", ";
  record("graph node" + separator + shape, device_ns(launch) / kNodes);
  record("host, launch a graph of 100" + separator + shape, host_ns(launch));
  CHECK(cudaGraphExecDestroy(executable));
  CHECK(cudaGraphDestroy(graph));
}

// Returns the mean host time of a call of `enqueue`, in ns.
double host_ns(const std::function<void()>& enqueue) {
  for (int warm = 0; warm < 3; ++warm) enqueue();
  CHECK(cudaStreamSynchronize(stream));
  const auto start = std::chrono::steady_clock::now();
  for (int i = 0; i < kHostCalls; ++i) enqueue();
  const auto end = std::chrono::steady_clock::now();
  CHECK(cudaStreamSynchronize(stream));
  return std::chrono::duration<double, std::nano>(end - start).count() / kHostCalls;
}

// Records the time of a barrier in clusters of `size` blocks, measured with `clusters` clusters in parallel. Records
// nothing if the device cannot run that many clusters of this size at once.
void record_cluster_barrier(int size, int clusters) {
  if (size > 8) {  // CUDA guarantees clusters of up to 8 blocks only
    cudaFuncSetAttribute(cluster_barriers, cudaFuncAttributeNonPortableClusterSizeAllowed, 1);
  }
  cudaLaunchAttribute attribute{};
  attribute.id = cudaLaunchAttributeClusterDimension;
  attribute.val.clusterDim = {static_cast<unsigned>(size), 1, 1};
  cudaLaunchConfig_t config{};
  config.gridDim = size * clusters, config.blockDim = 256, config.stream = stream;
  config.attrs = &attribute, config.numAttrs = 1;
  int max_clusters = 0;
  if (cudaOccupancyMaxActiveClusters(&max_clusters, cluster_barriers, &config) != cudaSuccess ||
      max_clusters < clusters) {
    cudaGetLastError();  // clears the error
    return;
  }
  const auto run = [&](int n) { return device_ns([&] { CHECK(cudaLaunchKernelEx(&config, cluster_barriers, n)); }); };
  record("cluster barrier, " + std::to_string(size) + " blocks x 256",
         (run(2 * kBarriers) - run(kBarriers)) / kBarriers);
}

int main() {
  std::atexit(print_json);
  cudaDeviceProp device;
  CHECK(cudaGetDeviceProperties(&device, 0));
  CHECK(cudaStreamCreateWithFlags(&stream, cudaStreamNonBlocking));
  const int sms = device.multiProcessorCount;

  for (const int blocks : {1, sms}) {
    const std::string shape = std::to_string(blocks) + " x 256";
    const double sequence_ns = device_ns([&] {
      for (int i = 0; i < kNodes; ++i) launch_empty(blocks, /*threads=*/256, /*dependent=*/false);
    });
    record("kernel in a stream, " + shape, sequence_ns / kNodes);
    for (const bool dependent : {false, true}) record_graph(shape, blocks, /*threads=*/256, dependent);
  }
  record("host, enqueue a kernel", host_ns([&] { launch_empty(/*blocks=*/1, /*threads=*/256, /*dependent=*/false); }));

  unsigned* counter;
  CHECK(cudaMalloc(&counter, sizeof *counter));
  for (const int threads : {128, 256}) {
    // Both lambdas return the time of one launch with n barriers, in ns. The difference between a launch with 2n and
    // one with n barriers is the time of n barriers, without the launch overhead.
    const auto cooperative_groups_ns = [&](int n) {
      void* arguments[] = {&n};
      return device_ns([&] {
        CHECK(cudaLaunchCooperativeKernel(reinterpret_cast<void*>(grid_barriers), sms, threads, arguments, 0, stream));
      });
    };
    const auto counter_ns = [&](int n) {
      void* arguments[] = {&n, &counter};
      return device_ns([&] {
        CHECK(cudaMemsetAsync(counter, 0, sizeof *counter, stream));
        CHECK(
            cudaLaunchCooperativeKernel(reinterpret_cast<void*>(counter_barriers), sms, threads, arguments, 0, stream));
      });
    };
    const std::string shape = std::to_string(sms) + " x " + std::to_string(threads);
    record("grid barrier (cooperative groups), " + shape,
           (cooperative_groups_ns(2 * kBarriers) - cooperative_groups_ns(kBarriers)) / kBarriers);
    record("grid barrier (one counter), " + shape, (counter_ns(2 * kBarriers) - counter_ns(kBarriers)) / kBarriers);
  }
  for (const int size : {2, 4, 8, 16}) record_cluster_barrier(size, /*clusters=*/4);
  return 0;
}
