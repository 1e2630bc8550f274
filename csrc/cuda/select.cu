// The chosen view alone.
#include "launch.h"
#include "move_block.h"

namespace equikern {
namespace cuda {
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
  if (plan.element_size == 16) return launch_element<Bytes16>(plan, stream);
  with_bits(plan.element_size, [&](auto e) { launch_element<decltype(e)>(plan, stream); });
}

}  // namespace cuda
}  // namespace equikern
