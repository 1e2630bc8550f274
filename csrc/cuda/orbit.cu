// Orbits: of the bits of any element, and with factors.
#include "launch.h"
#include "move_block.h"

namespace equikern {
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
  switch (plan.element_size) {
    case 1: return launch_bits<uint8_t>(plan, stream);
    case 2: return launch_bits<uint16_t>(plan, stream);
    case 4: return launch_bits<uint32_t>(plan, stream);
    case 8: return launch_bits<uint64_t>(plan, stream);
    default: return launch_bits<Bytes16>(plan, stream);
  }
}

void launch_scaled_orbit(const Plan& plan, int dtype, int device, void* stream) {
  const DeviceGuard guard(device);
  switch (static_cast<Dtype>(dtype)) {
    case Dtype::kFloat32: return launch_scaled<float>(plan, stream);
    case Dtype::kFloat64: return launch_scaled<double>(plan, stream);
    case Dtype::kFloat16: return launch_scaled<Half>(plan, stream);
    case Dtype::kBFloat16: return launch_scaled<BFloat16>(plan, stream);
    default: throw std::invalid_argument("expected a floating-point type");
  }
}

}  // namespace equikern
