// Fields whose channels are mixed by matrices: band by band all channels of a view are moved, then multiplied. Images are
// volumes of one plane here.
#pragma once

#include "boxes.h"

namespace equikern {
namespace EQK_ISA {

template <class A>
inline const A* matrix_of(const Problem& p, int g) { return static_cast<const A*>(p.mats) + p.view(g) * p.channels * p.channels; }

// to = then(Σ_c row[c] · from[c · step …], to), n numbers, a chunk or a number at a time.
template <class T, class F>
inline void mix_run(Acc<T>* to, const Acc<T>* row, int64_t channels, const T* from, int64_t step, int64_t n, const F& then) {
  typedef Widest<T> C;
  int64_t j = 0;
  for (; j + C::kLanes <= n; j += C::kLanes) {
    C sum = times(C::from(from + j), row[0]);
    for (int64_t c = 1; c < channels; ++c) sum = sum + times(C::from(from + c * step + j), row[c]);
    keep_in_order<C>(to + j, then(sum, [&] { return fetch_in_order<C>(to + j); }));
  }
  for (; j < n; ++j) {
    Acc<T> sum = row[0] * up(from[j]);
    for (int64_t c = 1; c < channels; ++c) sum += row[c] * up(from[c * step + j]);
    to[j] = then(sum, [&] { return to[j]; });
  }
}

template <class T>
inline void mix_run(Acc<T>* to, const Acc<T>* row, int64_t channels, const T* from, int64_t step, int64_t n) {
  mix_run<T>(to, row, channels, from, step, n, [](const auto& sum, const auto&) { return sum; });
}

// The sum so far plus w times the mixed channels, without a pass of its own for either.
template <class T>
inline void mix_added(Acc<T>* s, const Acc<T>* row, int64_t channels, const T* from, int64_t step, int64_t n, bool first, Acc<T> w) {
  if (first) mix_run<T>(s, row, channels, from, step, n, [&](const auto& sum, const auto&) { return times(sum, w); });
  else mix_run<T>(s, row, channels, from, step, n, [&](const auto& sum, const auto& so_far) { return so_far() + times(sum, w); });
}

// All channels of a band of a view, one dense run behind the other.
template <class E>
inline E* moved_channels(const Planes<E>& planes, int64_t channel, int64_t k, const Region& r) {
  const Problem& p = planes.p;
  const int64_t elements = elements_of(p, r);
  E* const stage = scratch<E>(0, p.channels * elements);
  const Band<E> band = dense_band<E>(p, r, stage);
  Source<E> from = planes.from;
  from.data += k * from.plane;
  for (int64_t c = 0; c < p.channels; ++c, from.data += channel)
    copy_views<E>(stage + c * elements, band.plane, band.row, from, p, planes.view, r);
  return stage;
}

// A view of a box to its place: `factor` times the mixed channels.
template <class T>
inline void put_mixed(const Planes<Bits<T>>& planes, int64_t channel, const Place<Bits<T>>& place, int64_t place_channel, bool streaming,
                      int g, Acc<T> factor) {
  typedef Bits<T> E;
  typedef Acc<T> A;
  const Problem& p = planes.p;
  planes.for_each((p.channels + 1) * sizeof(A), [&](int64_t k, const Region& r) {
    const int64_t elements = elements_of(p, r);
    const T* const moved = numbers<T>(moved_channels<E>(planes, channel, k, r));
    A* const mixed = scratch<A>(1, elements);
    E* const rounded = scratch<E>(2, elements);
    Place<E> to = place;
    to.data += k * to.plane;
    for (int64_t c = 0; c < p.channels; ++c, to.data += place_channel) {
      mix_run<T>(mixed, matrix_of<A>(p, g) + c * p.channels, p.channels, moved, elements, elements);
      round_run<T>(numbers<T>(rounded), mixed, factor, elements);
      put<E>(p, to, dense_band<E>(p, r, rounded), r, streaming);
    }
  });
}

template <class T>
void mix_orbit(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSumSide);
  const int64_t work = p.views * p.channels * turns.elements(p);
  const bool streaming = past_caches((work + work / p.views) * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box in = boxes.at(unit);
    const int64_t chosen = p.index ? p.index[n / p.planes_per_index] : -1;
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, 0), in);
      const Place<E> place = planes.place(Volume<E>(p, p.out, n, g));
      if (!p.index || chosen == g) {
        put_mixed<T>(planes, p.in.channel, place, p.out.channel, streaming, g, Acc<T>(p.scale * weight(p, g, n)));
        continue;
      }
      planes.for_each(sizeof(E), [&](int64_t k, const Region& r) {
        Place<E> to = place;
        to.data += k * to.plane;
        for (int64_t c = 0; c < p.channels; ++c, to.data += p.out.channel) put_zeros<E>(planes.p, to, r, streaming);
      });
    }
  });
}

template <class T>
void mix_select(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.out_size, kSumSide);
  const int64_t work = p.channels * turns.elements(p);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const int g = p.chosen(n / p.planes_per_index);
    const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turns.all[g].source(boxes.at(unit), turns.size));
    put_mixed<T>(planes, p.in.channel, planes.place(Volume<E>(p, p.out, n, 0)), p.out.channel, streaming, g, Acc<T>(1));
  });
}

template <class T>
void mix_reduce(const Problem& p) {
  typedef Bits<T> E;
  typedef Acc<T> A;
  const Turns turns(p);
  const int64_t work = p.views * p.channels * turns.elements(p), channels = p.channels, kept = p.kept();
  const Boxes boxes(p, turns, turns.out_size, kSumSide, kept);
  const bool streaming = past_caches((work + work / p.views) * int64_t(sizeof(T)));
  const bool spread = p.op == kStd || p.op == kMeanStd;
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box out = boxes.at(unit);
    const int64_t elements = out.size(0) * out.size(1) * out.size(2);
    E* const stage = scratch<E>(0, channels * elements);
    A* const s = scratch<A>(1, channels * elements * kept);
    A* const m = spread ? scratch<A>(2, channels * elements) : nullptr;
    A* const mixed = scratch<A>(3, 2 * elements);
    for (int g = 0; g < p.views; ++g) {
      const Side& side = p.source(g);
      Planes<E> planes(turns, g, Volume<E>(p, side, n, g), turns.all[g].source(out, turns.size));
      for (int64_t c = 0; c < channels; ++c, planes.from.data += side.channel) stage_planes<E>(planes, out, stage + c * elements, false);
      const A w = A(weight(p, g, n));
      for (int64_t c = 0; c < channels; ++c) {
        const A* const row = matrix_of<A>(p, g) + c * channels;
        if (p.op == kSum) {
          mix_added<T>(s + c * elements, row, channels, numbers<T>(stage), elements, elements, g == 0, w);
          continue;
        }
        mix_run<T>(mixed, row, channels, numbers<T>(stage), elements, elements);
        join_numbers<A>(p.op, s + c * elements * kept, spread ? m + c * elements : nullptr, mixed, elements, g, w);
      }
    }
    for (int64_t c = 0; c < channels; ++c) {
      A* const second = p.op == kMeanStd ? mixed + elements : nullptr;
      finish_run<A>(p, mixed, second, s + c * elements * kept, spread ? m + c * elements : nullptr, elements);
      const auto put_channel = [&](const Side& side, const A* from) {
        round_run<T>(numbers<T>(stage), from, A(1), elements);
        Side own = side;
        own.data += c * side.channel * int64_t(sizeof(T));
        put_box<E>(p, own, n, out, stage, streaming);
      };
      put_channel(p.out, mixed);
      if (second) put_channel(p.spread, second);
    }
  });
}

// Σ v · y over a band of the view.
template <class T>
double product(const Problem& p, const Acc<T>* v, const Place<Bits<T>>& place, const Region& r) {
  typedef Bits<T> E;
  typedef Acc<T> A;
  const Band<E> y = gathered<E>(p, place, r, scratch<E>(4, elements_of(p, r)));
  double total = 0;
  for (int64_t k = 0; k < r.planes; ++k) {
    for (int64_t i = 0; i < r.rows(); ++i, v += r.pixels()) {
      const T* const row = numbers<T>(y.data + k * y.plane + i * y.row);
      A sums[16] = {};
      int64_t j = 0;
      for (; j + 16 <= r.pixels(); j += 16)
        for (int l = 0; l < 16; ++l) sums[l] += v[j + l] * up(row[j + l]);
      for (; j < r.pixels(); ++j) sums[j & 15] += v[j] * up(row[j]);
      for (const A sum : sums) total += sum;
    }
  }
  return total;
}

template <class T>
void mix_dot(const Problem& p) {
  typedef Bits<T> E;
  typedef Acc<T> A;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.size, kSumSide);
  const int64_t work = p.views * p.channels * turns.elements(p);
  const bool streaming = p.out.data && past_caches((2 * work + work / p.views) * int64_t(sizeof(T)));
  std::vector<double> parts(boxes.count * p.views);
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box in = boxes.at(unit);
    for (int g = 0; g < p.views; ++g) {
      const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, 0), in);
      const Place<E> other = planes.place(Volume<E>(p, p.other, n, g)), out = planes.place(Volume<E>(p, p.out, n, g));
      const A w = A(weight(p, g, n));
      double total = 0;
      planes.for_each((p.channels + 2) * sizeof(A), [&](int64_t k, const Region& r) {
        const int64_t elements = elements_of(p, r);
        const T* const moved = numbers<T>(moved_channels<E>(planes, p.in.channel, k, r));
        A* const mixed = scratch<A>(1, elements);
        E* const rounded = scratch<E>(2, elements);
        Place<E> beside = other, to = out;
        beside.data += k * beside.plane;
        if (to.data) to.data += k * to.plane;
        for (int64_t c = 0; c < p.channels; ++c) {
          mix_run<T>(mixed, matrix_of<A>(p, g) + c * p.channels, p.channels, moved, elements, elements);
          total += product<T>(planes.p, mixed, beside, r);
          beside.data += p.other.channel;
          if (!to.data) continue;
          round_run<T>(numbers<T>(rounded), mixed, w, elements);
          put<E>(planes.p, to, dense_band<E>(planes.p, r, rounded), r, streaming);
          to.data += p.out.channel;
        }
      });
      parts[unit * p.views + g] = total;
    }
  });
  add_dots<T>(p, parts, boxes.count, [&](int64_t unit) { return boxes.volume(unit); });
}

}  // namespace EQK_ISA
}  // namespace equikern
