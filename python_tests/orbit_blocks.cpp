// The blocks of the CUDA orbit, run on the CPU: every thread up to the barrier, then every thread after it.
#include <cstdlib>
#include <cstring>
#include <exception>

#include "cuda/orbit_block.h"
#include "cuda/orbit_plan.cpp"

using namespace equikern;

namespace {

template <class Kernel>
void run(const OrbitPlan& plan, size_t shared_bytes) {
  void* shared = std::aligned_alloc(16, (shared_bytes + 15) / 16 * 16);
  for (int64_t block = 0; block < plan.blocks; ++block) {
    std::memset(shared, 0xAB, shared_bytes);
    for (int thread = 0; thread < kThreads; ++thread) Kernel::load(plan, block, thread, shared);
    for (int thread = kThreads; thread--;) Kernel::store(plan, block, thread, shared);
  }
  std::free(shared);
}

template <class E>
void run_element(const OrbitPlan& plan) {
  if (plan.kernel == OrbitKernel::runs) return run<Runs<E>>(plan, plan.shared_bytes);
  if (plan.kernel == OrbitKernel::strided) return run<Strided<E>>(plan, 16);
  if (plan.vectors) return run<Tiles<E, true>>(plan, Tiles<E, true>::kSharedBytes);
  run<Tiles<E, false>>(plan, Tiles<E, false>::kSharedBytes);
}

}  // namespace

// Returns 100 · kernel + 50 · vectors + element size, 0 if there was nothing to do, -1 if the plan refuses.
extern "C" int run_orbit(const void* x, void* out, int rank, const int64_t* sizes, const int64_t* x_strides,
                         const int64_t* out_strides, int n_views, const uint8_t* codes, int64_t element_size) {
  try {
    const OrbitPlan plan = plan_orbit(x, out, {sizes, sizes + rank}, {x_strides, x_strides + rank},
                                      {out_strides, out_strides + rank + 1}, {codes, codes + n_views}, element_size);
    if (plan.blocks == 0) return 0;
    switch (plan.element_size) {
      case 1: run_element<uint8_t>(plan); break;
      case 2: run_element<uint16_t>(plan); break;
      case 4: run_element<uint32_t>(plan); break;
      case 8: run_element<uint64_t>(plan); break;
      default: run_element<Bytes16>(plan);
    }
    return 100 * (1 + static_cast<int>(plan.kernel)) + 50 * plan.vectors + plan.element_size;
  } catch (const std::exception&) {
    return -1;
  }
}
