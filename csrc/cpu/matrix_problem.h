// A call on vectors of W entries that every view multiplies by a matrix of its own.
#pragma once

#include "problem.h"

namespace equikern {

// The planes are the vectors; their entries lie `col` apart.
struct MatrixProblem : Problem {};  // whose mats are (views, W, W)

struct MatrixKernels {
  const char* name;
  void (*orbit)(const MatrixProblem&);
  void (*reduce)(const MatrixProblem&);
  void (*orbit_dot)(const MatrixProblem&);
  void (*select)(const MatrixProblem&);
};

const MatrixKernels& matrix_kernels();  // for the instruction set of kernels()

}  // namespace equikern
