// How the blocks of *_block.h become kernels.
#pragma once

#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "plan.h"

namespace equikern {
namespace cuda {

inline void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("equikern: ") + what + ": " + cudaGetErrorString(status));
}

// Makes a device current and the previous one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) : device_(device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device_ != previous_) check(cudaSetDevice(device_), "cudaSetDevice");
  }
  ~DeviceGuard() {
    if (device_ != previous_) cudaSetDevice(previous_);
  }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int device_, previous_ = 0;
};

// Every phase, and a barrier after it: the last one, too, before shared memory serves the next block.
template <class Kernel, int kPhase, class P>
__device__ __forceinline__ void run_phases(const P& plan, int64_t block, unsigned char* shared,
                                           typename Kernel::State& state) {
  if constexpr (kPhase < Kernel::kPhases) {
    Kernel::template phase<kPhase>(plan, block, threadIdx.x, shared, state);
    if constexpr (Kernel::kPhases > 1) __syncthreads();
    run_phases<Kernel, kPhase + 1>(plan, block, shared, state);
  }
}

// Two blocks a multiprocessor at least, so up to 128 registers: otherwise some kernels spill a few for a third block.
// Blocks lie on grid axis 0, the only one with more than 65,535 places; beyond its 2^31 - 1 they take turns.
template <class Kernel>
__global__ void __launch_bounds__(kThreads, 2) run_blocks(const __grid_constant__ Plan plan, const int64_t blocks) {
  extern __shared__ __align__(16) unsigned char shared[];
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    typename Kernel::State state;
    run_phases<Kernel, 0>(plan, block, shared, state);
  }
}

template <class Kernel>
void launch(const Plan& plan, int64_t blocks, int shared_bytes, void* stream) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(blocks, INT32_MAX));
  run_blocks<Kernel><<<grid, kThreads, shared_bytes, static_cast<cudaStream_t>(stream)>>>(plan, blocks);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace cuda
}  // namespace equikern
