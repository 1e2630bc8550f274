// The index map of a 2D grid view, shared by the CPU and the CUDA kernels.
//
// An element code says how a view reads its input (H rows, W columns):
//   bit 0: transpose, output rows run along the input's columns
//   bit 1: the input's rows are read backwards
//   bit 2: the input's columns are read backwards
#pragma once

#include <cstdint>

#if defined(__CUDACC__) || defined(__HIPCC__)
#define EQK_HD __host__ __device__
#else
#define EQK_HD
#endif

namespace equikern {

constexpr unsigned kTranspose = 1, kReverseRows = 2, kReverseCols = 4;

template <class Index>
struct Pixel {
  Index row, col;
};

// The input pixel that pixel (i, j) of the view shows: view[i, j] = input[source(i, j)].
template <class Index>
EQK_HD inline Pixel<Index> source_pixel(unsigned code, Index i, Index j, Index H, Index W) {
  Index row = code & kTranspose ? j : i;
  Index col = code & kTranspose ? i : j;
  if (code & kReverseRows) row = H - 1 - row;
  if (code & kReverseCols) col = W - 1 - col;
  return {row, col};
}

// The inverse: where the view shows pixel (row, col) of the input.
template <class Index>
EQK_HD inline Pixel<Index> target_pixel(unsigned code, Index row, Index col, Index H, Index W) {
  if (code & kReverseRows) row = H - 1 - row;
  if (code & kReverseCols) col = W - 1 - col;
  return code & kTranspose ? Pixel<Index>{col, row} : Pixel<Index>{row, col};
}

}  // namespace equikern
