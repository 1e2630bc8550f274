// The backward of a weighted mean: the weighted orbit and the dots.
#include "dot_block.h"
#include "launch.h"

namespace equikern {
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
  switch (static_cast<Dtype>(dtype)) {
    case Dtype::kFloat32: return launch_element<float>(plan, stream);
    case Dtype::kFloat64: return launch_element<double>(plan, stream);
    case Dtype::kFloat16: return launch_element<Half>(plan, stream);
    case Dtype::kBFloat16: return launch_element<BFloat16>(plan, stream);
    default: throw std::invalid_argument("expected a floating-point type");
  }
}

}  // namespace equikern
