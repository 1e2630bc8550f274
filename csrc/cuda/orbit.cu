#include <cuda_runtime.h>

#include <algorithm>
#include <stdexcept>
#include <string>

#include "orbit_block.h"

namespace equikern {
namespace {

void check(cudaError_t status, const char* what) {
  if (status != cudaSuccess)
    throw std::runtime_error(std::string("orbit: ") + what + ": " + cudaGetErrorString(status));
}

// Makes a device current and the previous one again at the end.
class DeviceGuard {
 public:
  explicit DeviceGuard(int device) {
    check(cudaGetDevice(&previous_), "cudaGetDevice");
    if (device != previous_) check(cudaSetDevice(device), "cudaSetDevice");
  }
  ~DeviceGuard() { cudaSetDevice(previous_); }
  DeviceGuard(const DeviceGuard&) = delete;
  DeviceGuard& operator=(const DeviceGuard&) = delete;

 private:
  int previous_ = 0;
};

// Blocks lie on grid axis 0, the only one with more than 65,535 places; beyond its 2^31 - 1 they take turns.
template <class Kernel>
__global__ void __launch_bounds__(kThreads) run_blocks(const __grid_constant__ OrbitPlan plan) {
  extern __shared__ __align__(16) unsigned char shared[];
  for (int64_t block = blockIdx.x; block < plan.blocks; block += gridDim.x) {
    Kernel::load(plan, block, threadIdx.x, shared);
    __syncthreads();
    Kernel::store(plan, block, threadIdx.x, shared);
    __syncthreads();
  }
}

template <class Kernel>
void launch(const OrbitPlan& plan, cudaStream_t stream, int shared_bytes) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(plan.blocks, INT32_MAX));
  run_blocks<Kernel><<<grid, kThreads, shared_bytes, stream>>>(plan);
}

template <class E>
void launch_element(const OrbitPlan& plan, cudaStream_t stream) {
  switch (plan.kernel) {
    case OrbitKernel::runs:
      return launch<Runs<E>>(plan, stream, plan.shared_bytes);
    case OrbitKernel::tiles:
      return plan.vectors ? launch<Tiles<E, true>>(plan, stream, Tiles<E, true>::kSharedBytes)
                          : launch<Tiles<E, false>>(plan, stream, Tiles<E, false>::kSharedBytes);
    case OrbitKernel::strided:
      return launch<Strided<E>>(plan, stream, 0);
  }
}

}  // namespace

void launch_orbit(const OrbitPlan& plan, int device, void* stream) {
  if (plan.blocks == 0) return;
  const DeviceGuard guard(device);
  const auto on = static_cast<cudaStream_t>(stream);
  switch (plan.element_size) {
    case 1: launch_element<uint8_t>(plan, on); break;
    case 2: launch_element<uint16_t>(plan, on); break;
    case 4: launch_element<uint32_t>(plan, on); break;
    case 8: launch_element<uint64_t>(plan, on); break;
    default: launch_element<Bytes16>(plan, on);
  }
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace equikern
