// The kernels of matrices for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA avx512
#include "matrix.h"

namespace equikern {
extern const MatrixKernels matrix_avx512;
const MatrixKernels matrix_avx512{"avx512", avx512::orbit_of_matrices, avx512::reduce_of_matrices, avx512::dot_of_matrices, avx512::select_of_matrices};
}  // namespace equikern
