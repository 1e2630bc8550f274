// The gradients of reductions (shares.h), and the variance of views, which looks at them in the same way.
#include "boxes.h"
#include "kernels.h"
#include "lanes.h"
#include "shares.h"

namespace equikern {
namespace EQK_ISA {

// Every view of a box of the result as a run in `stage`.
template <class E>
inline const E** runs_of_box(const Problem& p, const Turns& turns, int64_t n, const Box& out, E* stage) {
  const int64_t elements = out.size(0) * out.size(1) * out.size(2) * p.V;
  const E** const from = scratch<const E*>(0, p.views);
  for (int g = 0; g < p.views; ++g) {
    const Planes<E> planes(turns, g, Volume<E>(p, p.in, n, g), turns.all[g].source(out, turns.size));
    stage_planes<E>(planes, out, stage + g * elements, negates(p, n, g));
    from[g] = stage + g * elements;
  }
  return from;
}

template <class T, int kOp>
void volume_shares(const Problem& p) {
  typedef Bits<T> E;
  const Returned back(p);
  const Turns turns(p), undo(back.p);
  const Boxes boxes(p, turns, turns.out_size, kSumSide, p.views);
  const int64_t work = p.views * turns.elements(p);
  const bool streaming = past_caches(2 * work * int64_t(sizeof(T)));
  for_units(p, boxes.count, work, [&](int64_t unit) {
    const int64_t n = boxes.volume(unit);
    const Box out = boxes.at(unit);
    const Region r{out.size(0), 0, out.size(1), 0, out.size(2)};
    const int64_t elements = elements_of(p, r), row = r.pixels() * p.V, plane = r.rows() * row;
    E* const stage = scratch<E>(3, elements * p.views);
    const E* const* const from = runs_of_box<E>(p, turns, n, out, stage);
    const auto place = [&](const Side& side) {
      const Volume<E> whole(p, side, n, 0);
      return Place<E>(whole.at_box(out), whole.step[0], whole.step[1], whole.step[2]);
    };
    share_region<T, kOp>(p, n, stage, from, place(p.other), place(p.spread), r, Ahead<E>(p, nullptr));
    for (int g = 0; g < p.views; ++g) {
      Volume<E> shares(p, p.out, n, g);
      const Volume<E> to = shares;
      shares.step[0] = plane, shares.step[1] = row, shares.step[2] = p.V;
      shares.data = stage + g * elements - (out.lo[0] * plane + out.lo[1] * row + out.lo[2] * p.V);
      const Planes<E> planes(undo, g, shares, out);
      put_planes<E, true>(planes, planes.place(to), streaming, false, g, n, -1);
    }
  });
}

// f(the reduction), a constant, for those whose gradient these kernels make.
template <class F>
void with_shared(int op, const F& f) {
  switch (op) {
    case kMax: return f(std::integral_constant<int, kMax>());
    case kMin: return f(std::integral_constant<int, kMin>());
    case kStd: return f(std::integral_constant<int, kStd>());
    case kVariance: return f(std::integral_constant<int, kVariance>());
    default: return f(std::integral_constant<int, kMeanStd>());
  }
}

void reduce_backward(const Problem& p) {
  with_float(p.dtype, [&](auto t) {
    with_shared(p.op, [&](auto op) { p.volumes ? volume_shares<decltype(t), op()>(p) : plane_shares<decltype(t), op()>(p); });
  });
}

// The deviations of n elements of all views from their means, squared and added: in double over a few vectors each.
template <class T>
struct Squares {
  typedef Widest<T> C;
  typedef Acc<T> A;
  typedef Bits<T> E;
  static constexpr int L = kLanesOf<T>, kSteps = 8, kHalves = sizeof(A) == 4 ? 2 : 1;
  typedef Vec<double, L / kHalves> D;
  D lanes[kHalves] = {};

  // The views of n elements at from[g], while what is ahead is fetched. kViews: how many, or 0.
  template <int kViews>
  void run(int count, const E* const* from, int64_t n, Ahead<E> ahead) {
    const int lines = lines_of(count, C::kLanes * sizeof(T));
    for (int64_t i = 0; i < n;) {
      C part = {};
      for (int step = 0; step < kSteps && i < n; ++step, i += C::kLanes) {
        ahead.fetch(lines);
        if (i + C::kLanes <= n)
          part = part + squared<kViews>(count, [&](int g) { return C::from(numbers<T>(from[g]) + i); });
        else
          part = part + squared<kViews>(count, [&](int g) {
            alignas(64) T some[C::kLanes] = {};  // what is not there deviates by 0
            std::memcpy(static_cast<void*>(some), from[g] + i, (n - i) * sizeof(T));
            return C::from(some);
          });
      }
      for (int q = 0; q < C::kParts; ++q) {
        if constexpr (kHalves == 1)
          lanes[0] += part.v[q];
        else
          for (int h = 0; h < 2; ++h)
            lanes[h] += __builtin_convertvector((half_of<A, L>(part.v[q], h, std::make_index_sequence<L / 2>())), D);
      }
    }
  }
  void add(int count, const E* const* from, int64_t n, const Ahead<E>& ahead) {
    switch (count) {
      case 2: return run<2>(count, from, n, ahead);
      case 4: return run<4>(count, from, n, ahead);
      case 8: return run<8>(count, from, n, ahead);
      default: return run<0>(count, from, n, ahead);
    }
  }
  double total() const {
    double sum = 0;
    for (const D& some : lanes)
      for (int l = 0; l < L / kHalves; ++l) sum += some[l];
    return sum;
  }

 private:
  static EQK_INLINE C minus(const C& a, const C& b) {
    C r;
    for (int q = 0; q < C::kParts; ++q) r.v[q] = a.v[q] - b.v[q];
    return r;
  }
  static EQK_INLINE C plus_square(const C& sum, const C& x) {
    C r;
    for (int q = 0; q < C::kParts; ++q) r.v[q] = sum.v[q] + x.v[q] * x.v[q];
    return r;
  }
  // Around one of them first: where views nearly agree, no digit of their differences is lost to their mean.
  template <int kViews, class Load>
  static EQK_INLINE C squared(int count, const Load& load) {
    const C first = load(0);
    C mean = {};
    if constexpr (kViews > 0) {
      C around[kViews];
#pragma GCC unroll 8
      for (int g = 1; g < kViews; ++g) around[g] = minus(load(g), first), mean = mean + around[g];
      mean = times(mean, A(1) / A(kViews));
      C sum = plus_square(minus(first, first), mean);  // NaN where the first is not finite
#pragma GCC unroll 8
      for (int g = 1; g < kViews; ++g) sum = plus_square(sum, minus(around[g], mean));
      return sum;
    } else {
      for (int g = 1; g < count; ++g) mean = mean + minus(load(g), first);
      mean = times(mean, A(1) / A(count));
      C sum = plus_square(minus(first, first), mean);
      for (int g = 1; g < count; ++g) sum = plus_square(sum, minus(minus(load(g), first), mean));
      return sum;
    }
  }
};

// Each unit's sums of squares, added up in the units' order; plane_of(unit) is its first plane.
template <class T, class F>
inline void add_squares(const Problem& p, const std::vector<double>& parts, const F& plane_of) {
  std::vector<double> sums(p.weight_columns);
  for (size_t n = 0; n < parts.size(); ++n) sums[plane_of(int64_t(n)) / p.planes_per_weight] += parts[n];
  for (size_t k = 0; k < sums.size(); ++k) static_cast<Acc<T>*>(p.dots)[k] = Acc<T>(sums[k] * p.scale);
}

template <class T>
void plane_variance(const Problem& p) {
  typedef Bits<T> E;
  const Views<E> views(p);
  const bool turns = turns_planes(p);
  const Units u(p, p.Ho, p.Wo);
  std::vector<double> parts(u.count);
  for_units(p, u, p.views * p.planes() * p.Ho * p.Wo * p.V, [&](int64_t n) {
    Squares<T> squares;
    for_unit_tiles(p, u, n, turns, sizeof(E), [&](const Tile& tile, const Tile* next) {
      const int64_t elements = elements_of(p, tile.region);
      squares.add(p.views, runs_of_views<E>(p, views, tile, scratch<E>(3, elements * p.views)), elements, Ahead<E>(p, next));
    });
    parts[n] = squares.total();
  });
  add_squares<T>(p, parts, [&](int64_t n) { return unit_at(u, n, p.Ho, p.Wo).plane; });
}

template <class T>
void volume_variance(const Problem& p) {
  typedef Bits<T> E;
  const Turns turns(p);
  const Boxes boxes(p, turns, turns.out_size, kSumSide, p.views);
  std::vector<double> parts(boxes.count);
  for_units(p, boxes.count, p.views * turns.elements(p), [&](int64_t unit) {
    const Box out = boxes.at(unit);
    const int64_t elements = out.size(0) * out.size(1) * out.size(2) * p.V;
    Squares<T> squares;
    squares.add(p.views, runs_of_box<E>(p, turns, boxes.volume(unit), out, scratch<E>(3, elements * p.views)), elements,
                Ahead<E>(p, nullptr));
    parts[unit] = squares.total();
  });
  add_squares<T>(p, parts, [&](int64_t unit) { return boxes.volume(unit); });
}

void variance(const Problem& p) {
  with_float(p.dtype, [&](auto t) { p.volumes ? volume_variance<decltype(t)>(p) : plane_variance<decltype(t)>(p); });
}

}  // namespace EQK_ISA
}  // namespace equikern
