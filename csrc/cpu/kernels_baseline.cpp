// The kernels for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA baseline
#include "kernels.h"

namespace equikern {
extern const Kernels kernels_baseline;
const Kernels kernels_baseline{"baseline", baseline::orbit, baseline::reduce, baseline::orbit_dot, baseline::select, baseline::tokens, baseline::softmax_mean,
    baseline::softmax_mean_backward, baseline::score, baseline::score_select, baseline::cross_entropy};
}  // namespace equikern
