// Permuted views of one dim: the source with some of its entries in other places. Included by views.h.
#pragma once

#include <algorithm>

namespace equikern {
namespace EQK_ISA {

// The moved entries lo … hi among first … last; `dense` where that is all of them.
struct MovedRange {
  int64_t lo, hi;
  bool dense;

  MovedRange(const Moves& m, int64_t first, int64_t last) : MovedRange(m.positions, m.count, first, last) {}
  MovedRange(const int32_t* begin, int64_t count, int64_t first, int64_t last) {
    const int32_t* const end = begin + count;
    lo = std::lower_bound(begin, end, first) - begin;
    hi = std::lower_bound(begin + lo, end, last) - begin;
    dense = hi - lo == last - first;
  }
};

template <class E>
EQK_INLINE E minus(E x, bool number) {
  return number ? x ^ E(E(1) << (8 * sizeof(E) - 1)) : E(E(0) - x);
}

// to[position − first] = the entry that shows there, in one row of n = `step` elements an entry.
template <class E, bool kSigned>
inline void gather_entries(E* to, int64_t first, const E* from, int64_t step, const Moves& m, const MovedRange& range, bool number) {
  const int32_t *const sources = m.sources + range.lo, *const positions = m.positions + range.lo;
  const int64_t n = range.hi - range.lo;
  const auto entry = [=](int64_t at) {
    if constexpr (kSigned)
      return at < 0 ? minus(from[~at * step], number) : from[at * step];
    else
      return from[at * step];
  };
  // Unrolled, since so short a loop takes twice its time where its jump meets the end of 32 bytes of code.
  if (!range.dense) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) to[positions[k] - first] = entry(sources[k]);
  } else if (step == 1 && !kSigned) {
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) to[k] = from[sources[k]];
  } else {
#pragma GCC unroll 4
    for (int64_t k = 0; k < n; ++k) to[k] = entry(sources[k]);
  }
}

// Fetches a row into L2 in order, before its entries are read in any order.
template <class E>
inline void warm_row(const E* row, int64_t n) {
  if (n * int64_t(sizeof(E)) > kWarmBytes) return;
  for (int64_t k = 0; k < n; k += kLine / int64_t(sizeof(E))) __builtin_prefetch(row + k, 0, 2);
}

// The part of a row that begins at entry `first` and is n long, permuted: in place where nothing of it moves.
template <class E>
inline const E* moved_row(const E* row, const Moves& m, int64_t first, int64_t n, E* stage) {
  const MovedRange range(m, first, first + n);
  if (range.lo == range.hi) return row + first;
  if (!range.dense) std::memcpy(static_cast<void*>(stage), row + first, n * sizeof(E));
  gather_entries<E, false>(stage, first, row, 1, m, range, true);
  return stage;
}

// All planes of a region, as copy_views does: the source where it is, then the moved rows or columns over it.
template <class E>
inline void copy_moved(E* to, int64_t to_plane, int64_t to_row, const Source<E>& from, const Problem& p, const Moves& m, const Region& r) {
  const int64_t first = p.move_rows ? r.i0 : r.j0;
  const MovedRange range(m, first, p.move_rows ? r.i1 : r.j1);
  const bool number = is_float(p.dtype);
  Source<E> plane = from;
  for (int64_t n = 0; n < r.planes; ++n, to += to_plane, plane.data += from.plane) {
    if (!range.dense) copy_view<E>(to, to_row, plane, p, 0, r);
    if (!p.move_rows) {
      if (range.dense && first == 0 && m.count > range.hi && plane.col == 1) warm_row(plane.data, p.W);
      if (m.has_signs)
        gather_entries<E, true>(to, first, plane.data, plane.col, m, range, number);
      else
        gather_entries<E, false>(to, first, plane.data, plane.col, m, range, number);
      continue;
    }
    for (int64_t k = range.lo; k < range.hi; ++k) {
      const int64_t at = m.sources[k], row = at < 0 ? ~at : at;
      E* const line = to + (m.positions[k] - first) * to_row;
      copy_view<E>(line, to_row, plane, p, 0, Region{1, row, row + 1, r.j0, r.j1});
      if (at < 0)
        for (int64_t j = 0; j < r.pixels(); ++j) line[j] = minus(line[j], number);
    }
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
