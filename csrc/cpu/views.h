// Bands of a view: some rows of g·x, ready to be copied, scaled or summed. All moving of elements happens here.
#pragma once

#include <algorithm>

#include "../grid_index.h"
#include "problem.h"
#include "vectors.h"

namespace equikern {
namespace EQK_ISA {

// `rows` rows of `length` elements for each of `planes` planes.
template <class E>
struct Band {
  const E* data;
  int64_t plane, row;  // strides in elements
};

// The part of a view that is asked for: rows i0…i1, pixels j0…j1 of every plane, in the view's coordinates.
struct Region {
  int64_t planes, i0, i1, j0, j1;
};

template <class E>
constexpr int most_lanes() {
  return std::min<int>(16, std::max<int>(4, kVectorBytes / int(sizeof(E)) > 16 || sizeof(E) < 4 ? 16 : kVectorBytes / int(sizeof(E))));
}

template <class E, int L>
inline void reverse_row(E* to, const E* from, int64_t n) {
  int64_t j = 0;
  for (; j + L <= n; j += L) store<E, L>(to + j, reverse_lanes<E, L>(load<E, L>(from + n - L - j)));
  if (j == n) return;
  if (n >= L) {  // the last lanes once more, overlapping
    store<E, L>(to + n - L, reverse_lanes<E, L>(load<E, L>(from)));
  } else {
    for (; j < n; ++j) to[j] = from[n - 1 - j];
  }
}

// to[i][j] = from[j][i] with either side's rows in either order (negative strides): n columns of `from` by m rows.
template <class E, int L>
inline void transpose_block(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t n, int64_t m) {
  for (int64_t i = 0; i < n;) {
    for (int64_t j = 0; j < m;) {
      Vec<E, L> r[L];
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) r[k] = load<E, L>(from + (j + k) * from_row + i);
      transpose<E, L>(r);
#pragma GCC unroll 16
      for (int k = 0; k < L; ++k) store<E, L>(to + (i + k) * to_row + j, r[k]);
      if (j + L == m) break;
      j = std::min(j + L, m - L);  // the last tile overlaps the one before
    }
    if (i + L == n) break;
    i = std::min(i + L, n - L);
  }
}

template <class E>
inline void transpose_any(E* to, int64_t to_row, const E* from, int64_t from_row, int64_t n, int64_t m) {
  constexpr int most = most_lanes<E>();
  int64_t least = std::min(n, m);
  if (least >= 16 && most >= 16) return transpose_block<E, 16>(to, to_row, from, from_row, n, m);
  if (least >= 8 && most >= 8) return transpose_block<E, 8>(to, to_row, from, from_row, n, m);
  if (least >= 4) return transpose_block<E, 4>(to, to_row, from, from_row, n, m);
  for (int64_t i = 0; i < n; ++i)
    for (int64_t j = 0; j < m; ++j) to[i * to_row + j] = from[j * from_row + i];
}

// One plane's region into `to`, rows to_row apart.
template <class E>
inline void copy_view(E* to, int64_t to_row, const E* from, const Problem& p, unsigned code, const Region& r) {
  const int64_t H = p.H, W = p.W, V = p.V, row = p.in.row, col = p.in.col;
  const int64_t rows = r.i1 - r.i0, cols = r.j1 - r.j0;
  if (V == 1 && col == 1) {
    if (code & kTranspose) {
      // View rows are source columns i0…i1 (or their mirror), view columns are source rows.
      const E* corner = from + (code & kReverseH ? H - 1 - r.j0 : r.j0) * row + (code & kReverseW ? W - r.i1 : r.i0);
      const int64_t step = code & kReverseH ? -row : row;
      if (code & kReverseW)
        transpose_any<E>(to + (rows - 1) * to_row, -to_row, corner, step, rows, cols);
      else
        transpose_any<E>(to, to_row, corner, step, rows, cols);
      return;
    }
    for (int64_t i = r.i0; i < r.i1; ++i, to += to_row) {
      const E* line = from + (code & kReverseH ? H - 1 - i : i) * row;
      if (code & kReverseW)
        reverse_row<E, most_lanes<E>()>(to, line + W - r.j1, cols);
      else
        std::memcpy(to, line + r.j0, cols * sizeof(E));
    }
    return;
  }
  for (int64_t i = r.i0; i < r.i1; ++i, to += to_row) {
    for (int64_t j = r.j0; j < r.j1; ++j) {
      const Point s = source_point(code, i, j, H, W);
      const E* pixel = from + s.row * row + s.col * col;
      E* put = to + (j - r.j0) * V;
      if (V == 1)
        *put = *pixel;
      else
        std::memcpy(put, pixel, V * sizeof(E));
    }
  }
}

// Planes of at most 64 elements of 2 or 4 bytes fit into four or two registers: a view is a few table permutations.
template <class E>
struct SmallPlane {
  static constexpr bool available =
#if defined(__AVX512BW__)
      sizeof(E) == 2 || sizeof(E) == 4;
#else
      false;
#endif
#if defined(__AVX512BW__)
  static constexpr int kRegisters = sizeof(E) == 4 ? 4 : 2, kLanes = 64 / int(sizeof(E));
  __m512i table[kRegisters];
  uint64_t upper[kRegisters];  // lanes read from the second pair of registers
  uint64_t last_mask;          // of the register that ends the plane
  int used;

  SmallPlane(const Problem& p, unsigned code) {
    const int n = int(p.Ho * p.Wo);
    E lanes[64] = {};
    std::fill(upper, upper + kRegisters, 0);
    for (int i = 0, k = 0; i < int(p.Ho); ++i) {
      for (int j = 0; j < int(p.Wo); ++j, ++k) {
        const Point s = source_point(code, i, j, p.H, p.W);
        const int source = int(s.row * p.W + s.col);
        lanes[k] = E(source % (2 * kLanes));
        if (source >= 2 * kLanes) upper[k / kLanes] |= uint64_t(1) << (k % kLanes);
      }
    }
    std::memcpy(table, lanes, sizeof table);
    used = (n + kLanes - 1) / kLanes;
    int rest = n - (used - 1) * kLanes;
    last_mask = rest == 64 ? ~uint64_t(0) : (uint64_t(1) << rest) - 1;
  }
  void fetch(const E* from, __m512i (&r)[kRegisters]) const {
    for (int k = 0; k < kRegisters; ++k) {
      if (k + 1 < used)
        r[k] = _mm512_loadu_si512(from + k * kLanes);
      else if (k + 1 == used)
        r[k] = sizeof(E) == 4 ? _mm512_maskz_loadu_epi32(__mmask16(last_mask), from + k * kLanes)
                              : _mm512_maskz_loadu_epi16(__mmask32(last_mask), from + k * kLanes);
      else
        r[k] = _mm512_setzero_si512();
    }
  }
  __m512i permuted(const __m512i (&r)[kRegisters], int k) const {
    if constexpr (kRegisters == 2) {
      return _mm512_permutex2var_epi16(r[0], table[k], r[1]);
    } else {
      __m512i low = _mm512_permutex2var_epi32(r[0], table[k], r[1]);
      if (used < 3) return low;
      return _mm512_mask_blend_epi32(__mmask16(upper[k]), low, _mm512_permutex2var_epi32(r[2], table[k], r[3]));
    }
  }
  // Writes whole registers: up to 63 elements past the plane, which the next plane or the stage's slack takes.
  void copy(E* to, const E* from) const {
    if constexpr (!available) return;
    __m512i r[kRegisters];
    fetch(from, r);
    for (int k = 0; k < used; ++k) _mm512_storeu_si512(to + k * kLanes, permuted(r, k));
  }
#else
  SmallPlane(const Problem&, unsigned) {}
  void copy(E*, const E*) const {}
#endif
};

inline bool is_small(const Problem& p) { return p.V == 1 && p.in.col == 1 && p.in.row == p.W && p.H * p.W <= 64 && p.H * p.W > 1; }

// A view's region as a band: in place where the source's rows already are the view's rows, otherwise in `stage`.
// `flat` asks for one contiguous run, which a streamed copy wants.
template <class E>
inline Band<E> view_band(const Problem& p, const E* from, int64_t from_plane, unsigned code, const Region& r, E* stage, bool flat, const SmallPlane<E>* small) {
  const int64_t length = (r.j1 - r.j0) * p.V, rows = r.i1 - r.i0;
  if (!(code & (kTranspose | kReverseW)) && p.in.col == p.V) {
    const bool reversed = code & kReverseH;
    Band<E> band{from + (reversed ? p.H - 1 - r.i0 : r.i0) * p.in.row + r.j0 * p.V, from_plane, reversed ? -p.in.row : p.in.row};
    bool contiguous = (rows == 1 || band.row == length) && (r.planes == 1 || band.plane == rows * length);
    if (contiguous || (!flat && r.planes == 1)) return band;
  }
  Band<E> band{stage, rows * length, length};
  for (int64_t k = 0; k < r.planes; ++k) {
    if (small)
      small->copy(stage + k * band.plane, from + k * from_plane);
    else
      copy_view<E>(stage + k * band.plane, length, from + k * from_plane, p, code, r);
  }
  return band;
}

}  // namespace EQK_ISA
}  // namespace equikern
