// Sums over the views.
#include "launch.h"
#include "sum_block.h"
#include "symmetrize_block.h"

namespace equikern {
namespace cuda {
namespace {

template <class T>
void launch_element(const Plan& plan, void* stream) {
  if (plan.layout == Layout::runs && plan.invariant)
    return with_order(plan, [&](auto order) {
      launch<SymmetrizeRuns<T, decltype(order)::value>>(plan, plan.blocks, plan.shared_bytes, stream);
    });
  if (plan.layout == Layout::runs) return launch<SumRuns<T>>(plan, plan.blocks, plan.shared_bytes, stream);
  if (plan.vectors)
    launch<SumTiles<T, true>>(plan, plan.blocks, SumTiles<T, true>::kSharedBytes, stream);
  else
    launch<SumTiles<T, false>>(plan, plan.blocks, SumTiles<T, false>::kSharedBytes, stream);
}

}  // namespace

void launch_sum(const Plan& plan, int dtype, int device, void* stream) {
  const DeviceGuard guard(device);
  with_float(static_cast<Dtype>(dtype), [&](auto t) { launch_element<decltype(t)>(plan, stream); });
}

}  // namespace cuda
}  // namespace equikern
