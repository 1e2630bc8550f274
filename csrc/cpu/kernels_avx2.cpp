// The kernels for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA avx2
#include "kernels.h"

namespace equikern {
extern const Kernels kernels_avx2;
const Kernels kernels_avx2{"avx2", avx2::orbit, avx2::reduce, avx2::orbit_dot, avx2::select, avx2::tokens, avx2::softmax_mean,
    avx2::softmax_mean_backward, avx2::score, avx2::score_select, avx2::cross_entropy};
}  // namespace equikern
