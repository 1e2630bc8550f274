// Picks the widest instruction set that this machine has, once; EQUIKERN_CPU=baseline|avx2|avx512 asks for one.
#include <cstdlib>
#include <cstring>
#include <stdexcept>
#include <string>

#include "cpu/problem.h"

namespace equikern {

namespace baseline { extern const Kernels kernels; }
#if defined(__x86_64__)
namespace avx2 { extern const Kernels kernels; }
namespace avx512 { extern const Kernels kernels; }
#endif

const char* const* isa_names() {
  static const char* names[4] = {};
  if (!names[0]) {
    int n = 0;
#if defined(__x86_64__)
    __builtin_cpu_init();
    const bool avx2 = __builtin_cpu_supports("avx2") && __builtin_cpu_supports("fma") && __builtin_cpu_supports("f16c");
    if (avx2 && __builtin_cpu_supports("avx512f") && __builtin_cpu_supports("avx512bw") && __builtin_cpu_supports("avx512dq") &&
        __builtin_cpu_supports("avx512vl"))
      names[n++] = "avx512";
    if (avx2) names[n++] = "avx2";
#endif
    names[n] = "baseline";
  }
  return names;
}

static const Kernels& choose() {
  const char* wanted = std::getenv("EQUIKERN_CPU");
  for (const char* const* name = isa_names(); *name; ++name) {
    if (wanted && *wanted && std::strcmp(wanted, *name)) continue;
#if defined(__x86_64__)
    for (const Kernels* found : {&avx512::kernels, &avx2::kernels})
      if (!std::strcmp(*name, found->name)) return *found;
#endif
    return baseline::kernels;
  }
  throw std::invalid_argument(std::string("EQUIKERN_CPU: expected an instruction set of this machine, got '") + wanted + "'");
}

const Kernels& kernels() {
  static const Kernels& chosen = choose();
  return chosen;
}

}  // namespace equikern
