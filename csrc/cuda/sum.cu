// Sums over the views.
#include "launch.h"
#include "sum_block.h"

namespace equikern {
namespace {

template <class T>
void launch_element(const Plan& plan, void* stream) {
  if (plan.layout == Layout::runs) return launch<SumRuns<T>>(plan, plan.blocks, plan.shared_bytes, stream);
  if (plan.vectors)
    launch<SumTiles<T, true>>(plan, plan.blocks, SumTiles<T, true>::kSharedBytes, stream);
  else
    launch<SumTiles<T, false>>(plan, plan.blocks, SumTiles<T, false>::kSharedBytes, stream);
}

}  // namespace

void launch_sum(const Plan& plan, int dtype, int device, void* stream) {
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
