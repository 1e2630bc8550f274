// The gradients of a weighted mean: the weighted views and their products with y, from one read of both.
#pragma once

#include <vector>

#include "units.h"

namespace equikern {
namespace EQK_ISA {

// Σ a·b, short sums in the accumulator's type and long ones in double, always in the same order.
template <class T>
struct Dot {
  typedef Widest<T> C;
  static constexpr int L = kLanesOf<T>;
  Vec<double, L> lanes = {};
  double rest = 0;

  // Where `to` is given, it gets a·w.
  template <bool kWrite>
  void run(const T* a, const T* b, T* to, Acc<T> w, int64_t n) {
    int64_t k = 0;
    while (k + C::kLanes <= n) {
      C part[2] = {};
      for (int step = 0; step < 32 && k + C::kLanes <= n; ++step, k += C::kLanes) {
        const C x = C::from(a + k), y = C::from(b + k);
        if (kWrite) times(x, w).to(to + k);
        C& sum = part[step & 1];
        for (int q = 0; q < C::kParts; ++q) sum.v[q] += x.v[q] * y.v[q];
      }
      const C both = part[0] + part[1];
      for (int q = 0; q < C::kParts; ++q) lanes += __builtin_convertvector(both.v[q], Vec<double, L>);
    }
    for (; k < n; ++k) {
      const Acc<T> x = up(a[k]);
      rest += double(x) * double(up(b[k]));
      if (kWrite) down(to + k, x * w);
    }
  }
  double total() const {
    double sum = rest;
    for (int l = 0; l < L; ++l) sum += lanes[l];
    return sum;
  }
};

// One band of a view times its counterpart in y, and times w to the output, if there is one.
template <class T>
inline void dot_band(const Problem& p, Dot<T>& dot, const Place<Bits<T>>& out, const Place<Bits<T>>& other, const Source<Bits<T>>& from,
                     const View<Bits<T>>& view, const Region& r, Acc<T> w, bool streaming) {
  typedef Bits<T> E;
  const bool direct = out.data && !streaming && out.rows_fit(p);
  const int64_t elements = elements_of(p, r);
  const Band<E> y = gathered<E>(p, other, r, other.col == p.V ? nullptr : scratch<E>(2, elements));
  const Band<E> x = view_band<E>(p, from, view, r, scratch<E>(0, elements), true);
  const int64_t length = r.pixels() * p.V, plane = r.rows() * length;
  E* to = !out.data ? nullptr : direct ? out.at_region(r) : scratch<E>(1, elements);
  const int64_t to_row = direct ? out.row : length, to_plane = direct ? out.plane : plane;
  // x is dense; one run where y and the output are dense too, or one a plane where their planes lie apart.
  const bool flat = is_flat(p, r, y.plane, y.row, to_plane, to_row), joined = y.row == length && to_row == length;
  const int64_t planes = flat ? 1 : r.planes, rows = flat || joined ? 1 : r.rows(), run = flat ? elements : joined ? plane : length;
  for (int64_t k = 0; k < planes; ++k) {
    for (int64_t i = 0; i < rows; ++i) {
      const T* a = numbers<T>(x.data) + k * plane + i * length;
      const T* b = numbers<T>(y.data) + k * y.plane + i * y.row;
      if (to)
        dot.template run<true>(a, b, numbers<T>(to) + k * to_plane + i * to_row, w, run);
      else
        dot.template run<false>(a, b, nullptr, w, run);
    }
  }
  if (to && !direct) put<E>(p, out, dense_band<E>(p, r, to), r, streaming);
}

// Each unit's dots, added up in the units' order; plane_of(unit) is its first plane.
template <class T, class F>
inline void add_dots(const Problem& p, const std::vector<double>& parts, int64_t units, const F& plane_of) {
  std::vector<double> sums(p.views * p.weight_columns);
  for (int64_t n = 0; n < units; ++n) {
    const int64_t column = plane_of(n) / p.planes_per_weight;
    for (int g = 0; g < p.views; ++g) sums[g * p.weight_columns + column] += parts[n * p.views + g];
  }
  for (size_t k = 0; k < sums.size(); ++k) static_cast<Acc<T>*>(p.dots)[k] = Acc<T>(sums[k]);
}

template <class T>
void dot_typed(const Problem& p) {
  typedef Bits<T> E;
  const Views<E> views(p);
  const int64_t work = p.views * p.planes() * p.H * p.W * p.V;
  const Units u(p, p.H, p.W);
  const bool streaming = p.out.data && past_caches((2 * work + work / p.views) * int64_t(sizeof(T)));
  std::vector<double> parts(u.count * p.views);
  for_units(p, u, work, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.H, p.W);
    const Source<E> from = source<E>(p, t.plane);
    for (int g = 0; g < p.views; ++g) {
      const Acc<T> w = Acc<T>(weight(p, g, t.plane));
      const Place<E> other(p, p.other, t.plane, g), out(p, p.out, t.plane, g);
      Dot<T> dot;
      for_bands(p, region_of(p, p.code(g), t), 2 * sizeof(E), [&](const Region& r) {
        dot_band<T>(p, dot, out, other, from, views[g], r, w, streaming);
      });
      parts[n * p.views + g] = negates(p, t.plane, g) ? -dot.total() : dot.total();
    }
  });
  add_dots<T>(p, parts, u.count, [&](int64_t n) { return unit_at(u, n, p.H, p.W).plane; });
}

}  // namespace EQK_ISA
}  // namespace equikern
