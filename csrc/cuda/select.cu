// The chosen view alone.
#include "launch.h"
#include "move_block.h"

namespace equikern {
namespace {

template <class E>
void launch_element(const Plan& plan, void* stream) {
  if (plan.layout == Layout::runs) return launch<SelectRuns<E>>(plan, plan.blocks, plan.shared_bytes, stream);
  if (plan.vectors)
    launch<SelectTiles<E, true>>(plan, plan.blocks, SelectTiles<E, true>::kSharedBytes, stream);
  else
    launch<SelectTiles<E, false>>(plan, plan.blocks, SelectTiles<E, false>::kSharedBytes, stream);
}

}  // namespace

void launch_select(const Plan& plan, int device, void* stream) {
  const DeviceGuard guard(device);
  switch (plan.element_size) {
    case 1: return launch_element<uint8_t>(plan, stream);
    case 2: return launch_element<uint16_t>(plan, stream);
    case 4: return launch_element<uint32_t>(plan, stream);
    case 8: return launch_element<uint64_t>(plan, stream);
    default: return launch_element<Bytes16>(plan, stream);
  }
}

}  // namespace equikern
