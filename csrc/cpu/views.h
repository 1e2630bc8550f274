// Bands of a view: some rows of g·x, in place or rearranged. All moving of elements happens here.
#pragma once

#include <algorithm>

#include "../grid_index.h"
#include "problem.h"
#include "vectors.h"

namespace equikern {
namespace EQK_ISA {

// The planes a view is taken from: point (a, b) is at (a − a0)·row + (b − b0)·col. Strides in elements.
template <class E>
struct Source {
  const E* data;
  int64_t plane, row, col, a0 = 0, b0 = 0;

  const E* at(int64_t a, int64_t b) const { return data + (a - a0) * row + (b - b0) * col; }
};

// `rows` rows of `length` elements for each of `planes` planes.
template <class E>
struct Band {
  const E* data;
  int64_t plane, row;
};

// The part of a view that is asked for: rows i0…i1, pixels j0…j1 of every plane, in the view's coordinates.
struct Region {
  int64_t planes, i0, i1, j0, j1;

  int64_t rows() const { return i1 - i0; }
  int64_t pixels() const { return j1 - j0; }
};

template <class E>
inline void reverse_row(E* to, const E* from, int64_t n) {
  constexpr int L = sizeof(E) == 1 ? 16 : kVectorBytes / int(sizeof(E));
  if (n >= L) {
    for (int64_t j = 0; j + L <= n; j += L) store<E, L>(to + j, reverse_lanes<E, L>(load<E, L>(from + n - L - j)));
    store<E, L>(to + n - L, reverse_lanes<E, L>(load<E, L>(from)));  // the last lanes, perhaps once more
    return;
  }
  for (int64_t j = 0; j < n; ++j) to[j] = from[n - 1 - j];
}

inline void copy_bytes(char* to, const char* from, int64_t n) {
  if (n < 16 || n > 1024) {
    std::memcpy(to, from, n);
    return;
  }
  for (int64_t k = 0; k + 16 <= n; k += 16) std::memcpy(to + k, from + k, 16);
  std::memcpy(to + n - 16, from + n - 16, 16);
}

// One plane's region into `to`, rows to_row apart; `from` is the plane's source.
template <class E>
inline void copy_view(E* to, int64_t to_row, const Source<E>& from, const Problem& p, unsigned code, const Region& r) {
  const int64_t H = p.H, W = p.W, V = p.V, row = from.row, col = from.col, rows = r.rows(), pixels = r.pixels();
  const bool mirror_h = code & kReverseH, mirror_w = code & kReverseW;
  if (V == 1 && col == 1 && code & kTranspose) {
    // View rows are source columns i0…i1 (or their mirror), view columns are source rows.
    const E* corner = from.at(mirror_h ? H - 1 - r.j0 : r.j0, mirror_w ? W - r.i1 : r.i0);
    const int64_t step = mirror_h ? -row : row;
    if (mirror_w)
      transpose<E>(to + (rows - 1) * to_row, -to_row, corner, step, rows, pixels);
    else
      transpose<E>(to, to_row, corner, step, rows, pixels);
    return;
  }
  for (int64_t i = r.i0; i < r.i1; ++i, to += to_row) {
    if (col == V && !(code & kTranspose)) {
      const int64_t a = mirror_h ? H - 1 - i : i;
      if (!mirror_w) {
        std::memcpy(to, from.at(a, r.j0), pixels * V * sizeof(E));
        continue;
      }
      if (V == 1) {
        reverse_row<E>(to, from.at(a, W - r.j1), pixels);
        continue;
      }
    }
    const Point first = source_point(code, i, r.j0, H, W);
    const int64_t step = code & kTranspose ? (mirror_h ? -row : row) : (mirror_w ? -col : col);
    const E* pixel = from.at(first.row, first.col);
    if (V == 1) {
      for (int64_t j = 0; j < pixels; ++j) to[j] = pixel[j * step];
    } else {
      for (int64_t j = 0; j < pixels; ++j)
        copy_bytes(reinterpret_cast<char*>(to + j * V), reinterpret_cast<const char*>(pixel + j * step), V * sizeof(E));
    }
  }
}

}  // namespace EQK_ISA
}  // namespace equikern

#include "small.h"

namespace equikern {
namespace EQK_ISA {

// All planes of a region, rows to_row apart and planes to_plane apart.
template <class E>
inline void copy_views(E* to, int64_t to_plane, int64_t to_row, const Source<E>& from, const Problem& p, unsigned code, const Region& r,
                       const SmallView<E>* small) {
  if (small && to_row == r.pixels()) return small->copy(to, to_plane, from.data, from.plane, r.planes);
  Source<E> plane = from;
  for (int64_t k = 0; k < r.planes; ++k, to += to_plane, plane.data += from.plane) copy_view<E>(to, to_row, plane, p, code, r);
}

// A view's region as a band: in place where the source's rows already are the view's rows, otherwise in `stage`.
// `flat` asks for one contiguous run.
template <class E>
inline Band<E> view_band(const Problem& p, const Source<E>& from, unsigned code, const Region& r, E* stage, bool flat, const SmallView<E>* small) {
  const int64_t length = r.pixels() * p.V, rows = r.rows();
  if (!(code & (kTranspose | kReverseW)) && from.col == p.V) {
    const bool mirror = code & kReverseH;
    const Band<E> band{from.at(mirror ? p.H - 1 - r.i0 : r.i0, r.j0), from.plane, mirror ? -from.row : from.row};
    const bool contiguous = (rows == 1 || band.row == length) && (r.planes == 1 || band.plane == rows * length);
    if (contiguous || (!flat && r.planes == 1)) return band;
  }
  const Band<E> band{stage, rows * length, length};
  copy_views<E>(stage, band.plane, length, from, p, code, r, small);
  return band;
}

}  // namespace EQK_ISA
}  // namespace equikern
