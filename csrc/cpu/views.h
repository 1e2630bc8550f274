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

// Rows of n elements, forwards or each backwards; the last vector of a row may overlap the one before.
template <class E, int L, bool kMirror>
inline void move_rows(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t rows, int64_t n) {
  if (n < L) {
    if constexpr (L > 4) return move_rows<E, L / 2, kMirror>(to, to_row, from, from_row, rows, n);
    for (; rows > 0; --rows, to += to_row, from += from_row)
      for (int64_t j = 0; j < n; ++j) to[j] = from[kMirror ? n - 1 - j : j];
    return;
  }
  const auto move = [](E* target, const E* source) {
    const Vec<E, L> v = load<E, L>(source);
    store<E, L>(target, kMirror ? reverse_lanes<E, L>(v) : v);
  };
  for (; rows > 0; --rows, to += to_row, from += from_row) {
    int64_t j = 0;
    for (; j + L <= n; j += L) move(to + j, from + (kMirror ? n - L - j : j));
    if (j < n) move(to + n - L, from + (kMirror ? 0 : n - L));
  }
}
template <class E>
inline void copy_rows(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t rows, int64_t n) {
  if (n * sizeof(E) <= 1024) return move_rows<E, kVectorBytes / int(sizeof(E)), false>(to, to_row, from, from_row, rows, n);
  for (; rows > 0; --rows, to += to_row, from += from_row) std::memcpy(to, from, n * sizeof(E));
}
template <class E>
inline void reverse_rows(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t rows, int64_t n) {
  move_rows<E, sizeof(E) == 1 ? 16 : kVectorBytes / int(sizeof(E)), true>(to, to_row, from, from_row, rows, n);
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
  if (col == V && !(code & kTranspose) && (V == 1 || !mirror_w)) {
    const E* first = from.at(mirror_h ? H - 1 - r.i0 : r.i0, mirror_w ? W - r.j1 : r.j0);
    const int64_t step = mirror_h ? -row : row;
    if (mirror_w) return reverse_rows<E>(to, to_row, first, step, rows, pixels);
    return copy_rows<E>(to, to_row, first, step, rows, pixels * V);
  }
  for (int64_t i = r.i0; i < r.i1; ++i, to += to_row) {
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

#include "moves.h"
#include "small.h"

namespace equikern {
namespace EQK_ISA {

// How a view is made: by its code, by its table where planes are small, or by the entries that it moves.
template <class E>
struct View {
  unsigned code = 0;
  const SmallView<E>* small = nullptr;
  bool permutes = false;
  Moves moves = {};

  // Whether a region of it is the same region of the source.
  bool stays(const Problem& p, const Region& r) const {
    if (!permutes) return !(code & (kTranspose | kReverseW));
    const MovedRange range = p.move_rows ? MovedRange(moves, r.i0, r.i1) : MovedRange(moves, r.j0, r.j1);
    return range.lo == range.hi;
  }
};

template <class E>
struct Views {
  const Problem& p;
  SmallViews<E> small;
  explicit Views(const Problem& problem) : p(problem), small(problem) {}
  View<E> operator[](int g) const {
    if (p.permutes()) return {0, nullptr, true, p.moves(g)};
    return {p.code(g), small[g], false, {}};
  }
};

// All planes of a region, rows to_row apart and planes to_plane apart.
template <class E>
inline void copy_views(E* to, int64_t to_plane, int64_t to_row, const Source<E>& from, const Problem& p, const View<E>& view, const Region& r) {
  const unsigned code = view.code;
  if (view.permutes && !view.stays(p, r)) return copy_moved(to, to_plane, to_row, from, p, view.moves, r);
  const bool whole = r.rows() * r.pixels() == p.H * p.W;  // as the copies of small planes take them
  if (view.small && whole && to_row == r.pixels()) return view.small->copy(to, to_plane, from.data, from.plane, r.planes);
  Source<E> plane = from;
  // Rows that follow each other in both places are one row: in the same order, or all of the plane backwards.
  const int64_t length = r.pixels() * p.V, all = r.rows() * length;
  const bool dense = from.col == p.V && from.row == length && to_row == length;
  if (dense && (code == 0 || (code == (kReverseH | kReverseW) && p.V == 1))) {
    const E* first = from.at(code ? p.H - r.i1 : r.i0, code ? p.W - r.j1 : r.j0);
    if (!code && r.planes > 1 && from.plane == all && to_plane == all) return void(std::memcpy(to, first, r.planes * all * sizeof(E)));
    for (int64_t k = 0; k < r.planes; ++k, to += to_plane, first += from.plane)
      code ? reverse_rows<E>(to, 0, first, 0, 1, all) : void(std::memcpy(to, first, all * sizeof(E)));
    return;
  }
  for (int64_t k = 0; k < r.planes; ++k, to += to_plane, plane.data += from.plane) copy_view<E>(to, to_row, plane, p, code, r);
}

// A view's region as a band: in place where the source's rows already are the view's rows, otherwise in `stage`.
// `flat` asks for one contiguous run.
template <class E>
inline Band<E> view_band(const Problem& p, const Source<E>& from, const View<E>& view, const Region& r, E* stage, bool flat) {
  const int64_t length = r.pixels() * p.V, rows = r.rows();
  if (from.col == p.V && view.stays(p, r)) {
    const bool mirror = view.code & kReverseH;
    const Band<E> band{from.at(mirror ? p.H - 1 - r.i0 : r.i0, r.j0), from.plane, mirror ? -from.row : from.row};
    const bool contiguous = (rows == 1 || band.row == length) && (r.planes == 1 || band.plane == rows * length);
    if (contiguous || (!flat && r.planes == 1)) return band;
  }
  const Band<E> band{stage, rows * length, length};
  copy_views<E>(stage, band.plane, length, from, p, view, r);
  return band;
}

}  // namespace EQK_ISA
}  // namespace equikern
