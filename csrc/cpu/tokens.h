// Views of token ids: every view looks its ids up in a table.
#pragma once

#include "units.h"

namespace equikern {
namespace EQK_ISA {

// The first id that is not in 0 … size − 1, in the order of the tensor; null if there is none.
template <class E>
const E* find_outside(const Problem& p) {
  typedef std::make_unsigned_t<E> Unsigned;
  const int64_t planes = p.planes();
  const Unsigned size = Unsigned(p.vocabulary);
  for (int64_t n = 0; n < planes; ++n) {
    const E* row = at<E>(p, p.in, n);
    const auto outside = [&](int64_t j) { return Unsigned(row[j]) >= size; };  // negative ids are larger than any size
    bool any = false;
    for (int64_t j = 0; j < p.W; ++j) any |= outside(j);
    for (int64_t j = 0; any; ++j)
      if (outside(j)) return row + j;
  }
  return nullptr;
}

// All views, or the one that the index names. The ids must be in range.
template <class E>
void tokens_typed(const Problem& p) {
  const Units u(p, p.H, p.W);
  for_units(p, u, (p.index ? 1 : p.views) * p.planes() * p.W, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.H, p.W);
    const Place<E> from(p, p.in, t.plane, 0);
    const int first = p.index ? p.chosen(t.plane / p.planes_per_index) : 0, last = p.index ? first + 1 : p.views;
    for_bands(p, t.region(), 2 * sizeof(E), [&](const Region& r) {
      const int64_t elements = elements_of(p, r);
      const Band<E> ids = gathered<E>(p, from, r, scratch<E>(0, elements));
      E* const mapped = scratch<E>(1, elements);
      for (int g = first; g < last; ++g) {
        const int32_t* const table = p.tokens + g * p.vocabulary;
        const int64_t pixels = r.pixels();
        for (int64_t k = 0; k < r.planes; ++k) {
          const E* const from_row = ids.data + k * ids.plane;
          E* const to = mapped + k * pixels;
          for (int64_t j = 0; j < pixels; ++j) to[j] = E(table[from_row[j]]);
        }
        put<E>(p, Place<E>(p, p.out, t.plane, g), dense_band<E>(p, r, mapped), r, false);
      }
    });
  });
}

}  // namespace EQK_ISA
}  // namespace equikern
