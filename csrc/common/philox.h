// Philox4x32-10: four random 32-bit words as a function of a 128-bit counter and a 64-bit key.
// Salmon, Moraes, Dror and Shaw, "Parallel random numbers: as easy as 1, 2, 3", SC 2011. The specification is
// gru4rec_fast/ops/philox.py; both files define the same constants.
#pragma once

#include <cstdint>

// Functions marked GRF_HOST_DEVICE are always inlined. The linker merges out-of-line copies of a function, and could
// keep the copy that was compiled for AVX-512, which crashes on older processors (common/foreach_isa.h).
#if defined(__CUDACC__)
#define GRF_HOST_DEVICE __host__ __device__ __forceinline__
#elif defined(__GNUC__) || defined(__clang__)
#define GRF_HOST_DEVICE inline __attribute__((always_inline))
#else
#define GRF_HOST_DEVICE inline
#endif

namespace grf {
namespace philox {

// Streams of random numbers: each use has its own. The stream is the first word of the counter.
constexpr uint32_t kStreamNegatives = 0;
constexpr uint32_t kStreamEmbeddingDropout = 1;
constexpr uint32_t kStreamHiddenDropout = 2;  // of the first GRU layer; layer l uses kStreamHiddenDropout + l
constexpr uint32_t kStreamEdgeDropout = 1 << 16;
constexpr uint32_t kStreamMessageDropout = 1 << 17;  // graph layer l uses kStreamMessageDropout + l
constexpr uint32_t kStreamTriples = 1 << 18;

// Returns the threshold for dropout with probability p: a unit is dropped if its random 32-bit word is smaller.
inline uint32_t drop_threshold(double p) {
  return static_cast<uint32_t>(p * 0x1p32);
}

struct Words {
  uint32_t w0, w1, w2, w3;
};

// Returns four random words for a counter, with the seed as the key.
GRF_HOST_DEVICE Words philox4x32(Words counter, uint64_t seed) {
  uint32_t key0 = static_cast<uint32_t>(seed);
  uint32_t key1 = static_cast<uint32_t>(seed >> 32);
  Words c = counter;
#if defined(__CUDACC__) || defined(__clang__)
#pragma unroll
#elif defined(__GNUC__)
#pragma GCC unroll 10
#endif
  for (int round = 0; round < 10; ++round) {
    const uint64_t product0 = static_cast<uint64_t>(c.w0) * 0xD2511F53u;
    const uint64_t product1 = static_cast<uint64_t>(c.w2) * 0xCD9E8D57u;
    c = {static_cast<uint32_t>(product1 >> 32) ^ c.w1 ^ key0, static_cast<uint32_t>(product1),
         static_cast<uint32_t>(product0 >> 32) ^ c.w3 ^ key1, static_cast<uint32_t>(product0)};
    key0 += 0x9E3779B9u;
    key1 += 0xBB67AE85u;
  }
  return c;
}

}  // namespace philox
}  // namespace grf
