// Orbits: of the bits of any element, and with factors.
#include "launch.h"
#include "move_block.h"

namespace equikern {
namespace cuda {
namespace {

template <class E>
void launch_bits(const Plan& plan, void* stream) {
  switch (plan.layout) {
    case Layout::runs:
      return launch<OrbitRuns<E>>(plan, plan.blocks, plan.shared_bytes, stream);
    case Layout::tiles:
      return plan.vectors
                 ? launch<OrbitTiles<E, true>>(plan, plan.blocks, OrbitTiles<E, true>::kSharedBytes, stream)
                 : launch<OrbitTiles<E, false>>(plan, plan.blocks, OrbitTiles<E, false>::kSharedBytes, stream);
    case Layout::strided:
      return launch<OrbitStrided<E>>(plan, plan.blocks, 0, stream);
  }
}

template <class T>
void launch_scaled(const Plan& plan, void* stream) {
  if (plan.layout == Layout::runs) return launch<ScaledOrbitRuns<T>>(plan, plan.blocks, plan.shared_bytes, stream);
  if (plan.vectors)
    launch<ScaledOrbitTiles<T, true>>(plan, plan.blocks, ScaledOrbitTiles<T, true>::kSharedBytes, stream);
  else
    launch<ScaledOrbitTiles<T, false>>(plan, plan.blocks, ScaledOrbitTiles<T, false>::kSharedBytes, stream);
}

}  // namespace

void launch_orbit(const Plan& plan, int device, void* stream) {
  const DeviceGuard guard(device);
  if (plan.element_size == 16) return launch_bits<Bytes16>(plan, stream);
  with_bits(plan.element_size, [&](auto e) { launch_bits<decltype(e)>(plan, stream); });
}

void launch_scaled_orbit(const Plan& plan, int dtype, int device, void* stream) {
  const DeviceGuard guard(device);
  with_float(static_cast<Dtype>(dtype), [&](auto t) { launch_scaled<decltype(t)>(plan, stream); });
}

}  // namespace cuda
}  // namespace equikern
