// Weighted sums of views of a permuted dim: band by band all views at once, most of them in place.
#pragma once

#include <algorithm>

#include "sum.h"

namespace equikern {
namespace EQK_ISA {

// Whether the entries of a unit that some view moves are few: its row is then summed as if all stayed, and these again.
inline bool are_few(const Problem& p, const Region& r, const MovedRange& range) {
  const int64_t moved = range.hi - range.lo;
  const bool rows = p.in.col == 1 && p.source(p.views - 1).col == 1;  // those of what is added, too
  return !p.move_rows && p.V == 1 && rows && r.planes == 1 && r.rows() == 1 && moved > 0 && moved <= r.pixels() / 16;
}

template <class T, class C, bool kWeighted>
void sum_few(const Problem& p, const Unit& t, const MovedRange& range, const Place<Bits<T>>& place) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const int32_t* const at = p.positions + range.lo;
  const int64_t m = range.hi - range.lo, n = std::max<int64_t>(m, C::kLanes);  // the sums are those of the rows, a chunk at a time
  E *const stages = scratch<E>(1, p.views * n), *const sums = scratch<E>(0, n);
  const bool number = is_float(p.dtype);
  Lines<T> lines;
  for (int g = 0; g < p.views; ++g) {
    const Moves moves = p.moves(g);
    const int32_t* const from = moves.count ? moves.sources + range.lo : at;
    const E* const row = source<E>(p, t.plane, g).at(t.r0, 0);
    E* const to = stages + g * n;
    for (int64_t k = 0; k < m; ++k) to[k] = from[k] < 0 ? minus(row[~from[k]], number) : row[from[k]];
    std::fill(to + m, to + n, E(0));
    lines.add(numbers<T>(to), 0, A(weight(p, g, t.plane)));
  }
  const A scale = A(p.scale);
  T* const summed = numbers<T>(sums);
  sum_lines<C, kWeighted>(lines, Lines<T>(), 0, 1, n, n,
                          [=](int64_t, int64_t, int64_t j, const C& sum) { times(sum, scale).to(summed + j); });
  E* const out = place.data + t.r0 * place.row;
  for (int64_t k = 0; k < m; ++k) out[at[k] * place.col] = sums[k];
}

template <class T, class C, bool kWeighted>
void sum_bands(const Problem& p, const Unit& t, const Views<Bits<T>>& views, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const A scale = A(p.scale);
  const Place<E> place(p, p.out, t.plane, 0);
  const MovedRange range(p.positions, p.moved, t.c0, t.c1);
  const bool few = are_few(p, t.region(), range);
  const View<E> still{};
  for_bands(p, t.region(), 2 * sizeof(A), [&](const Region& r) {
    const int64_t elements = elements_of(p, r);
    const bool flat = place.rows_fit(p) && is_flat(p, r, place.plane, place.row, place.plane, place.row);
    const bool past = streaming && flat && reinterpret_cast<uintptr_t>(place.at_region(r)) % kLine == 0;
    const bool direct = past || (flat && !streaming);
    T* const to = numbers<T>(direct ? place.at_region(r) : scratch<E>(0, elements));
    E* const stages = scratch<E>(1, p.views * elements);
    Lines<T> lines;
    for (int g = 0; g < p.views; ++g) {
      const Band<E> band = view_band<E>(p, source<E>(p, t.plane, g), few ? still : views[g], r, stages + g * elements, true);
      lines.add(numbers<T>(band.data), 0, A(weight(p, g, t.plane)));
    }
    sum_lines<C, kWeighted>(lines, Lines<T>(), 0, 1, elements, elements, [=](int64_t, int64_t, int64_t j, const C& sum) {
      if (past && j % C::kLanes == 0) return times(sum, scale).past(to + j);
      times(sum, scale).to(to + j);
    });
    if (!direct) put<E>(p, place, dense_band<E>(p, r, reinterpret_cast<E*>(to)), r, streaming);
  });
  if (!few) return;
  if (streaming) stream_fence();
  sum_few<T, C, kWeighted>(p, t, range, place);
}

template <class T, class C>
void sum_bands(const Problem& p, const Units& u, bool streaming) {
  const Views<Bits<T>> views(p);
  for_units(p, u, p.planes() * p.Ho * p.Wo * p.views, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.Ho, p.Wo);
    p.weights ? sum_bands<T, C, true>(p, t, views, streaming) : sum_bands<T, C, false>(p, t, views, streaming);
  });
}

// Whether the sum is done here: every band has at least the elements of the shortest chunk.
template <class T>
bool sum_moved(const Problem& p, const Units& u, bool streaming) {
  const int64_t least = p.Wo * std::min<int64_t>(p.Ho, 2);
  constexpr int L = kLanesOf<T>;
  if (p.views > kMostSummed) return false;
  if (least >= Chunk<T, L>::kLanes) return sum_bands<T, Chunk<T, L>>(p, u, streaming), true;
  if constexpr (L >= 8)
    if (least >= Chunk<T, L / 4>::kLanes) return sum_bands<T, Chunk<T, L / 4>>(p, u, streaming), true;
  return false;
}

}  // namespace EQK_ISA
}  // namespace equikern
