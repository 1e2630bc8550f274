// The kernels of matrices for one instruction set; setup.py adds the compiler's flags by this file's name.
#define EQK_ISA baseline
#include "matrix.h"

namespace equikern {
extern const MatrixKernels matrix_baseline;
const MatrixKernels matrix_baseline{"baseline", baseline::orbit_of_matrices, baseline::reduce_of_matrices, baseline::dot_of_matrices, baseline::select_of_matrices};
}  // namespace equikern
