// Means of softmaxes and their gradients.
#include "softmax_backward_block.h"

#include "launch.h"

namespace equikern {
namespace cuda {
namespace {

// As run_blocks.
template <class Kernel>
__global__ void __launch_bounds__(kThreads, 2) run_rows(const __grid_constant__ RowPlan plan, const int64_t blocks) {
  extern __shared__ __align__(16) unsigned char shared[];
  for (int64_t block = blockIdx.x; block < blocks; block += gridDim.x) {
    typename Kernel::State state;
    run_phases<Kernel, 0>(plan, block, shared, state);
  }
}

template <class Kernel>
void launch_rows(const RowPlan& plan, void* stream) {
  const unsigned grid = static_cast<unsigned>(std::min<int64_t>(plan.blocks, INT32_MAX));
  check(cudaFuncSetAttribute(run_rows<Kernel>, cudaFuncAttributeMaxDynamicSharedMemorySize, plan.shared_bytes),
        "shared memory");
  run_rows<Kernel><<<grid, kThreads, plan.shared_bytes, static_cast<cudaStream_t>(stream)>>>(plan, plan.blocks);
  check(cudaGetLastError(), "kernel launch");
}

}  // namespace

int64_t shared_limit(int device) {
  int bytes;
  check(cudaDeviceGetAttribute(&bytes, cudaDevAttrMaxSharedMemoryPerBlockOptin, device), "cudaDeviceGetAttribute");
  return bytes;
}

void launch_softmax_mean(const RowPlan& plan, int dtype, bool log, int device, void* stream) {
  const DeviceGuard guard(device);
  with_float(static_cast<Dtype>(dtype), [&](auto t) {
    using T = decltype(t);
    log ? launch_rows<SoftmaxMean<T, true>>(plan, stream) : launch_rows<SoftmaxMean<T, false>>(plan, stream);
  });
}

void launch_softmax_mean_backward(const RowPlan& plan, int dtype, bool log, int device, void* stream) {
  const DeviceGuard guard(device);
  with_float(static_cast<Dtype>(dtype), [&](auto t) {
    using T = decltype(t);
    if (log)
      launch_rows<SoftmaxMeanBackward<T, true>>(plan, stream);
    else
      launch_rows<SoftmaxMeanBackward<T, false>>(plan, stream);
  });
}

}  // namespace cuda
}  // namespace equikern
