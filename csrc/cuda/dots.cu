// The backward of a weighted mean: the weighted orbit and the dots.
#include "dot_block.h"
#include "launch.h"

namespace equikern {
namespace cuda {
namespace {

template <class T>
void launch_element(const Plan& plan, void* stream) {
  if (plan.layout == Layout::runs)
    launch<DotRuns<T>>(plan, plan.blocks, plan.shared_bytes, stream);
  else if (plan.vectors)
    launch<DotTiles<T, true>>(plan, plan.blocks, DotTiles<T, true>::shared_bytes(plan), stream);
  else
    launch<DotTiles<T, false>>(plan, plan.blocks, DotTiles<T, false>::shared_bytes(plan), stream);
  using Sum = SumOfDots<Accumulator<T>>;
  launch<Sum>(plan, plan.n_views * plan.weight_columns, Sum::kSharedBytes, stream);
}

}  // namespace

void launch_dots(const Plan& plan, int dtype, int device, void* stream) {
  const DeviceGuard guard(device);
  with_float(static_cast<Dtype>(dtype), [&](auto t) { launch_element<decltype(t)>(plan, stream); });
}

}  // namespace cuda
}  // namespace equikern
