// Orbits and selections: views are moved, perhaps times a number.
#pragma once

#include "units.h"

namespace equikern {
namespace EQK_ISA {

template <class T>
inline void scale_run(T* to, const T* from, int64_t n, Acc<T> s) {
  typedef Widest<T> C;
  int64_t k = 0;
  for (; k + C::kLanes <= n; k += C::kLanes) times(C::from(from + k), s).to(to + k);
  for (; k < n; ++k) down(to + k, up(from[k]) * s);
}

// to = from · s, rounded.
template <class T>
inline void round_run(T* to, const Acc<T>* from, Acc<T> s, int64_t n) {
  typedef Widest<T> C;
  int64_t j = 0;
  for (; j + C::kLanes <= n; j += C::kLanes) times(fetch_in_order<C>(from + j), s).to(to + j);
  for (; j < n; ++j) down(to + j, from[j] * s);
}

// The region's elements with the other sign, where they are.
template <class E>
inline void negate(const Problem& p, E* to, int64_t to_plane, int64_t to_row, const Region& r) {
  const bool number = is_float(p.dtype);
  const bool joined = to_row == r.pixels() * p.V;
  const int64_t rows = joined ? 1 : r.rows(), n = r.pixels() * p.V * (joined ? r.rows() : 1);
  for (int64_t k = 0; k < r.planes; ++k) {
    for (int64_t i = 0; i < rows; ++i) {
      E* const row = to + k * to_plane + i * to_row;
      for (int64_t j = 0; j < n; ++j) row[j] = minus(row[j], number);
    }
  }
}

// A view's region in `stage`, as one dense run, with the other sign.
template <class E>
inline Band<E> negated_band(const Problem& p, const Source<E>& from, const View<E>& view, const Region& r, E* stage) {
  const Band<E> band = dense_band<E>(p, r, stage);
  copy_views<E>(stage, band.plane, band.row, from, p, view, r);
  negate<E>(p, stage, band.plane, band.row, r);
  return band;
}

// One band of a view to its place: at once, or staged where its rows are not the place's or it is streamed.
template <class E>
inline void move_view(const Problem& p, const Place<E>& place, const Source<E>& from, const View<E>& view, const Region& r, bool streaming,
                      bool minus) {
  if (place.rows_fit(p) && !streaming) {
    copy_views<E>(place.at_region(r), place.plane, place.row, from, p, view, r);
    if (minus) negate<E>(p, place.at_region(r), place.plane, place.row, r);
    return;
  }
  E* stage = scratch<E>(0, elements_of(p, r));
  put<E>(p, place, minus ? negated_band<E>(p, from, view, r, stage) : view_band<E>(p, from, view, r, stage, streaming), r, streaming);
}

template <class E>
inline void put_zeros(const Problem& p, const Place<E>& place, const Region& r, bool streaming) {
  const int64_t elements = elements_of(p, r);
  E* stage = scratch<E>(0, elements);
  std::memset(stage, 0, elements * sizeof(E));
  put<E>(p, place, dense_band<E>(p, r, stage), r, streaming);
}

// The unit's part of a source times a number, dense: where all views have the same factor it is applied once.
template <class T>
inline Source<Bits<T>> scaled_source(const Problem& p, const Source<Bits<T>>& from, const Unit& t, Acc<T> s) {
  typedef Bits<T> E;
  const Region r = t.region();
  const int64_t row = r.pixels() * p.V, plane = r.rows() * row;
  E* dense = scratch<E>(2, r.planes * plane);
  const Place<E> place = [&] {
    Place<E> x(p, p.in, t.plane, 0);
    x.data = const_cast<E*>(from.data);
    return x;
  }();
  const Band<E> band = gathered<E>(p, place, r, dense);
  for_runs(p, r, plane, row, band.plane, band.row,
           [&](int64_t a, int64_t b, int64_t n) { scale_run<T>(numbers<T>(dense + a), numbers<T>(band.data + b), n, s); });
  return {dense, plane, row, p.V, t.r0, t.c0};
}

// One band of view g of a plane to its place, times its factor; zeros where another view is `chosen`, which is not below 0.
template <class T, bool kExact>
inline void put_view(const Problem& p, const Place<Bits<T>>& place, const Source<Bits<T>>& from, const View<Bits<T>>& view,
                     const Region& r, bool streaming, int g, int64_t plane, int64_t chosen) {
  typedef Bits<T> E;
  if (p.index && chosen != g) return put_zeros<E>(p, place, r, streaming);
  if constexpr (!kExact) {
    if (p.weights || p.permutes() || p.signs || p.volumes) {
      const int64_t elements = elements_of(p, r);
      E* stage = scratch<E>(1, elements);
      const Band<E> band = view_band<E>(p, from, view, r, scratch<E>(0, elements), true);
      scale_run<T>(numbers<T>(stage), numbers<T>(band.data), elements, Acc<T>(p.scale * weight(p, g, plane)));
      return put<E>(p, place, dense_band<E>(p, r, stage), r, streaming);
    }
  }
  move_view<E>(p, place, from, view, r, streaming, negates(p, plane, g));
}

// T: a float type where something is multiplied, unsigned integers where bits are moved.
template <class T, bool kExact>
void orbit_typed(const Problem& p) {
  typedef Bits<T> E;
  const Views<E> views(p);
  const int64_t work = p.views * p.planes() * p.H * p.W * p.V;
  const bool streaming = past_caches((work + work / p.views) * int64_t(sizeof(T)));
  const Units u(p, p.H, p.W);
  for_units(p, u, work, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.H, p.W);
    Source<E> from = source<E>(p, t.plane);
    if constexpr (!kExact)
      if (!p.weights && !p.permutes() && !p.signs) from = scaled_source<T>(p, from, t, Acc<T>(p.scale));
    const int64_t chosen = p.index ? p.index[t.plane / p.planes_per_index] : -1;
    for (int g = 0; g < p.views; ++g) {
      const Place<E> place(p, p.out, t.plane, g);
      for_bands(p, region_of(p, p.code(g), t), sizeof(E), [&](const Region& r) {
        put_view<T, kExact>(p, place, from, views[g], r, streaming, g, t.plane, chosen);
      });
    }
  });
}

// One view for every plane, the one its index names.
template <class E>
void select_typed(const Problem& p) {
  const Views<E> views(p);
  const int64_t work = p.planes() * p.Ho * p.Wo * p.V;
  const bool streaming = past_caches(2 * work * int64_t(sizeof(E)));
  const Units u(p, p.Ho, p.Wo, true);
  for_units(p, u, work, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.Ho, p.Wo);
    const E* const plane = at<E>(p, p.in, t.plane);
    const int64_t step = next_plane(p, p.in);
    Place<E> place(p, p.out, t.plane, 0);
    for_chosen(p, t, [&](int64_t first, int64_t planes, int g) {
      const Source<E> from{plane + first * step + view_offset(p, p.in, t.plane, g), step, p.in.row, p.in.col};
      const View<E> view = views[g];
      const bool minus = negates(p, t.plane, g);
      for_bands(p, Region{planes, t.r0, t.r1, t.c0, t.c1}, sizeof(E),
                [&](const Region& r) { move_view<E>(p, place, from, view, r, streaming, minus); });
      place.data += planes * place.plane;
    });
  });
}

template <class S>
void choose_views(const Problem& p) {
  const S* scores = static_cast<const S*>(p.scores);
  for (int64_t c = 0; c < p.weight_columns; ++c) {
    int best = 0;
    S least = scores[c];
    for (int g = 1; g < p.views; ++g) {
      const S s = scores[g * p.weight_columns + c];
      if (is_better(s, least, p.minimum)) best = g, least = s;
    }
    p.index[c] = best;
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
