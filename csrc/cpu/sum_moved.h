// Weighted sums of views of a permuted dim: band by band all views at once, most of them in place.
#pragma once

#include "sum.h"

namespace equikern {
namespace EQK_ISA {

template <class T, class C, bool kWeighted>
void sum_bands(const Problem& p, const Unit& t, const Views<Bits<T>>& views, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const A scale = A(p.scale);
  const Place<E> place(p, p.out, t.plane, 0);
  for_bands(p, t.region(), 2 * sizeof(A), [&](const Region& r) {
    const int64_t elements = elements_of(p, r);
    const bool flat = place.rows_fit(p) && is_flat(p, r, place.plane, place.row, place.plane, place.row);
    const bool past = streaming && flat && reinterpret_cast<uintptr_t>(place.at_region(r)) % 64 == 0;
    const bool direct = past || (flat && !streaming);
    T* const to = numbers<T>(direct ? place.at_region(r) : scratch<E>(0, elements));
    E* const stages = scratch<E>(1, p.views * elements);
    Lines<T> lines;
    for (int g = 0; g < p.views; ++g) {
      const Band<E> band = view_band<E>(p, source<E>(p, t.plane, g), views[g], r, stages + g * elements, true);
      lines.add(numbers<T>(band.data), 0, A(weight(p, g, t.plane)));
    }
    sum_lines<C, kWeighted>(lines, Lines<T>(), 0, 1, elements, elements, [=](int64_t, int64_t, int64_t j, const C& sum) {
      if (past && j % C::kLanes == 0) return times(sum, scale).past(to + j);
      times(sum, scale).to(to + j);
    });
    if (!direct) put<E>(p, place, dense_band<E>(p, r, reinterpret_cast<E*>(to)), r, streaming);
  });
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
