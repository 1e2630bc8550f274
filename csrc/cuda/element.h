// What kernels that compute do with their elements: sums run in float32, in float64 for float64, and are rounded once.
#pragma once

#include "dtypes.h"

namespace equikern {
namespace cuda {

template <class T>
struct AccumulatorOf {
  using type = float;
};
template <>
struct AccumulatorOf<double> {
  using type = double;
};
template <class T>
using Accumulator = typename AccumulatorOf<T>::type;

EQK_HD float widen(float v) { return v; }
EQK_HD double widen(double v) { return v; }
EQK_HD float widen(BFloat16 v) { return to_float(v); }
EQK_HD float widen(Half v) {
#if defined(__CUDA_ARCH__)
  float wide;
  asm("cvt.f32.f16 %0, %1;" : "=f"(wide) : "h"(v.bits));
  return wide;
#else
  return to_float(v);
#endif
}

EQK_HD void narrow(float v, float& to) { to = v; }
EQK_HD void narrow(double v, double& to) { to = v; }
EQK_HD void narrow(float v, BFloat16& to) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm("cvt.rn.bf16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  to = to_bfloat16(v);
#endif
}
EQK_HD void narrow(float v, Half& to) {
#if defined(__CUDA_ARCH__)
  asm("cvt.rn.f16.f32 %0, %1;" : "=h"(to.bits) : "f"(v));
#else
  to = to_half(v);
#endif
}

}  // namespace cuda
}  // namespace equikern
