// The kernels for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA avx512
#include "kernels.h"

namespace equikern {
extern const Kernels kernels_avx512;
const Kernels kernels_avx512{"avx512", avx512::orbit, avx512::reduce, avx512::orbit_dot, avx512::select, avx512::tokens, avx512::softmax_mean,
    avx512::softmax_mean_backward, avx512::score, avx512::score_select, avx512::cross_entropy};
}  // namespace equikern
