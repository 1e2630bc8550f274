// Index maps of the grid actions, shared by the C++ and the CUDA kernels so that one arithmetic is tested for both.
#pragma once

#if defined(__CUDACC__)
#define EQK_HD __host__ __device__ inline
#else
#define EQK_HD inline
#endif

namespace equikern {

// One view of an H×W plane: (a, b) = transposed ? (j, i) : (i, j), then a and b are mirrored where their bit is set.
constexpr unsigned kTranspose = 1, kReverseH = 2, kReverseW = 4;

struct Point {
  long long row, col;
};

// The point of the H×W plane that point (i, j) of the view shows.
EQK_HD Point source_point(unsigned code, long long i, long long j, long long H, long long W) {
  Point p{code & kTranspose ? j : i, code & kTranspose ? i : j};
  if (code & kReverseH) p.row = H - 1 - p.row;
  if (code & kReverseW) p.col = W - 1 - p.col;
  return p;
}

// The inverse: the point of the view that shows point (row, col) of the H×W plane.
EQK_HD Point target_point(unsigned code, long long row, long long col, long long H, long long W) {
  if (code & kReverseH) row = H - 1 - row;
  if (code & kReverseW) col = W - 1 - col;
  return code & kTranspose ? Point{col, row} : Point{row, col};
}

// A view as a linear map from its own pixels to a position in the source: origin + i * down + j * right.
struct LinearView {
  int origin, down, right;
};

EQK_HD LinearView linear_view(unsigned code, int rows, int cols, int pitch) {
  auto at = [&](int i, int j) {
    const Point p = source_point(code, i, j, rows, cols);
    return static_cast<int>(p.row) * pitch + static_cast<int>(p.col);
  };
  return {at(0, 0), at(1, 0) - at(0, 0), at(0, 1) - at(0, 0)};
}

}  // namespace equikern
