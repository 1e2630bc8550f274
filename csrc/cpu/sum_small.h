// Sums of planes of at most 64 elements: each view's registers are permuted by its table and added.
#pragma once

#include "units.h"

namespace equikern {
namespace EQK_ISA {

#if defined(__AVX512BW__)

template <class T, int kUsed>
struct SmallSum {
  typedef Bits<T> E;
  typedef Acc<T> A;
  typedef Widest<T> C;
  static constexpr int kChunks = 64 / int(sizeof(T)) / C::kLanes;

  const Problem& p;
  const SmallViews<E>& small;

  // `planes` planes whose views begin at from + offsets[g], those that are added at beside + offsets[g], to places
  // `to_plane` apart.
  template <bool kWeighted>
  void run(T* to, int64_t to_plane, Source<E> from, Source<E> beside, int64_t planes, const A* weights, const int64_t* offsets) const {
    const SmallShape<E> shape = small.all[0].shape;
    const int64_t elements = small.all[0].elements;
    const A scale = A(p.scale);
    const int views = p.views, added = p.added;
    for (int64_t n = 0; n < planes; ++n, to += to_plane, from.data += from.plane, beside.data += beside.plane) {
      C sum[kUsed][kChunks] = {};
      for (int g = 0; g < views; ++g) {
        const SmallView<E>& view = small.all[g];
        __m512i r[kUsed], v[kUsed];
        shape.template load<kUsed>((g < added ? from.data : beside.data) + offsets[g], r);
        if (view.identity) {
#pragma GCC unroll 4
          for (int k = 0; k < kUsed; ++k) v[k] = r[k];
        } else {
#pragma GCC unroll 4
          for (int k = 0; k < kUsed; ++k) v[k] = view.permuted(r, k);
        }
#pragma GCC unroll 4
        for (int k = 0; k < kUsed; ++k) {
#pragma GCC unroll 2
          for (int c = 0; c < kChunks; ++c) {
            C x = C::from(reinterpret_cast<const T*>(&v[k]) + c * C::kLanes);
            if (kWeighted) x = times(x, weights[g]);
            sum[k][c] = g ? sum[k][c] + x : x;
          }
        }
      }
      __m512i out[kUsed];
#pragma GCC unroll 4
      for (int k = 0; k < kUsed; ++k)
#pragma GCC unroll 2
        for (int c = 0; c < kChunks; ++c) times(sum[k][c], scale).to(reinterpret_cast<T*>(&out[k]) + c * C::kLanes);
      shape.template store<kUsed>(reinterpret_cast<E*>(to), out, to_plane != elements || (planes - n) * elements < kUsed * SmallShape<E>::kLanes);
    }
  }

  void unit(const Unit& t, bool streaming) const {
    const Place<E> place(p, p.out, t.plane, 0);
    const Side& last = p.source(p.views - 1);
    const Source<E> from{at<E>(p, p.in, t.plane), next_plane(p, p.in), 0, 0}, beside{at<E>(p, last, t.plane), next_plane(p, last), 0, 0};
    const int64_t elements = p.Ho * p.Wo;
    const bool direct = !streaming && place.col == 1 && place.row == p.Wo;
    T* to = numbers<T>(direct ? place.data : scratch<E>(0, t.planes * elements));
    const int64_t to_plane = direct ? place.plane : elements;
    A weights[kMaxViews];
    int64_t offsets[kMaxViews];
    for (int g = 0; g < p.views; ++g) offsets[g] = view_offset(p, p.source(g), t.plane, g);
    for (int g = 0; (p.weights || p.signs) && g < p.views; ++g) weights[g] = A(weight(p, g, t.plane));
    if (p.weights || p.signs)
      run<true>(to, to_plane, from, beside, t.planes, weights, offsets);
    else
      run<false>(to, to_plane, from, beside, t.planes, weights, offsets);
    if (!direct) put<E>(p, place, dense_band<E>(p, t.region(), reinterpret_cast<E*>(to)), t.region(), streaming);
  }
};

template <class T>
bool sum_small(const Problem& p, const Units& u, bool streaming) {
  typedef Bits<T> E;
  if constexpr (!SmallView<E>::kAvailable) {
    return false;
  } else {
    const SmallViews<E> small(p);
    if (small.all.empty()) return false;
    const int used = small.all[0].shape.used;
    for_units(p, u, p.planes() * p.Ho * p.Wo * p.views, [&](int64_t n) {
      const Unit t = unit_at(u, n, p.Ho, p.Wo);
      if (used == 1) return SmallSum<T, 1>{p, small}.unit(t, streaming);
      if (used == 2) return SmallSum<T, 2>{p, small}.unit(t, streaming);
      if constexpr (sizeof(E) == 4) {
        if (used == 3) return SmallSum<T, 3>{p, small}.unit(t, streaming);
        return SmallSum<T, 4>{p, small}.unit(t, streaming);
      }
    });
    return true;
  }
}

#else
template <class T>
bool sum_small(const Problem&, const Units&, bool) {
  return false;
}
#endif

}  // namespace EQK_ISA
}  // namespace equikern
