// The kernels of matrices for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA avx2
#include "matrix.h"

namespace equikern {
extern const MatrixKernels matrix_avx2;
const MatrixKernels matrix_avx2{"avx2", avx2::orbit_of_matrices, avx2::reduce_of_matrices, avx2::dot_of_matrices, avx2::select_of_matrices};
}  // namespace equikern
