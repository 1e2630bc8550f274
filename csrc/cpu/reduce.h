// Reductions over the views: sums on their fast paths, the others band by band into scratch memory, in the accumulator's
// type. It holds a running value of each element, or where all views are needed at once (sorted.h) every view's.
#pragma once

#include <cmath>
#include <type_traits>

#include "orbit.h"
#include "sorted.h"
#include "sum.h"
#include "sum_moved.h"
#include "sum_small.h"

namespace equikern {
namespace EQK_ISA {

// What each reduction does when view k joins the running value s; spreads have the sum m of squared deviations from it,
// too, and what is lost of it in rounding. On chunks where vectors know the operation, on single numbers for logarithms.
template <class A>
inline A clamped_logit(A v) {
  const A low = A(1e-6), high = A(1) - A(1e-6);
  v = v < low ? low : v > high ? high : v;  // NaN stays
  return std::log(v / (A(1) - v));
}

template <int kOp, class V, class A>
EQK_INLINE void join_value(V& s, V& m, V& lost, V v, int k, A w) {
  if constexpr (kOp == kSum) {
    v = v * w;
    s = k ? s + v : v;
  } else if constexpr (kOp == kMax) {
    s = k ? ((v > s) | (v != v) ? v : s) : v;
  } else if constexpr (kOp == kMin) {
    s = k ? ((v < s) | (v != v) ? v : s) : v;
  } else if constexpr (kOp == kHmean) {
    v = A(1) / v;
    s = k ? s + v : v;
  } else if constexpr (kOp == kStd) {  // Welford, with a mean of two numbers: one far from zero would round the spread away
    if (!k) {
      s = v, m = v - v, lost = m;
    } else {
      const V d = (v - s) - lost, step = d * (A(1) / A(k + 1));
      const auto finite = step - step == V{};
      const V mean = finite ? s + step : s + v;  // infinities as a sum has them
      lost = finite ? lost + (step - (mean - s)) : V{};
      s = mean;
      m += d * ((v - s) - lost);
    }
  } else {
    static_assert(kOp == kGmean || kOp == kTsharpen || kOp == kLogodd || kOp == kLog1p, "an operation");
    const auto prepared = [](A x) {
      return kOp == kGmean ? std::log(x) : kOp == kTsharpen ? std::sqrt(x) : kOp == kLogodd ? clamped_logit(x) : std::log1p(x);
    };
    if constexpr (sizeof(V) == sizeof(A))
      v = prepared(v);
    else
      for (size_t l = 0; l < sizeof(V) / sizeof(A); ++l) v[l] = prepared(v[l]);
    s = k ? s + v : v;
  }
}

// f(which way to join), a constant.
template <class F>
void with_op(int op, const F& f) {
  switch (Op(op)) {  // no default: one that is forgotten does not compile
    case kSum: return f(std::integral_constant<int, kSum>());
    case kMax: return f(std::integral_constant<int, kMax>());
    case kMin: return f(std::integral_constant<int, kMin>());
    case kGmean: return f(std::integral_constant<int, kGmean>());
    case kHmean: return f(std::integral_constant<int, kHmean>());
    case kTsharpen: return f(std::integral_constant<int, kTsharpen>());
    case kLogodd: return f(std::integral_constant<int, kLogodd>());
    case kLog1p: return f(std::integral_constant<int, kLog1p>());
    case kMedian: return f(std::integral_constant<int, kMedian>());
    case kStd:
    case kMeanStd: return f(std::integral_constant<int, kStd>());
    case kWeightedMean:  // a sum by now
    case kVote: return;  // of integers, which come here in no other way
    case kVariance: return;  // of all elements together: variance.h
  }
}

template <class T, int kOp>
void join_chunks(Acc<T>* s, Acc<T>* m, const T* from, int64_t n, int k, Acc<T> w) {
  typedef Widest<T> C;
  Acc<T>* const lost = s + n;
  int64_t i = 0;
  for (; i + C::kLanes <= n; i += C::kLanes) {
    C sum = {}, square = {}, rest = {};
    if (k) sum = fetch<C>(s + i);
    if (k && kOp == kStd) square = fetch<C>(m + i), rest = fetch<C>(lost + i);
    const C x = C::from(from + i);
    for (int q = 0; q < C::kParts; ++q) join_value<kOp>(sum.v[q], square.v[q], rest.v[q], x.v[q], k, w);
    keep(s + i, sum);
    if (kOp == kStd) keep(m + i, square), keep(lost + i, rest);
  }
  for (; i < n; ++i) {
    Acc<T> none = 0;
    join_value<kOp>(s[i], kOp == kStd ? m[i] : none, kOp == kStd ? lost[i] : none, up(from[i]), k, w);
  }
}

// s and m hold chunks in their own order, then single numbers: always over the same n. For spreads what is lost of s lies
// behind it. Or s holds n numbers of each view.
template <class T, int kOp>
void join_run(Acc<T>* s, Acc<T>* m, const T* from, int64_t n, int k, Acc<T> w) {
  if constexpr (kOp == kMedian || kOp == kVote) return widen_run(s + k * n, from, n);
  else join_chunks<T, kOp>(s, m, from, n, k, w);
}

// The same for numbers in the accumulator's type that are no band of a view, such as products.
template <class A>
inline void join_numbers(int op, A* s, A* m, const A* from, int64_t n, int k, A w) {
  with_op(op, [&](auto which) { join_run<A, which()>(s, m, from, n, k, w); });
}

template <class A>
inline A finish_value(const Problem& p, A s, A m) {
  const A share = A(1) / A(p.views);
  switch (p.op) {
    case kGmean: return std::exp(s * share);
    case kHmean: return A(1) / (s * share);
    case kTsharpen: return s * share;
    case kLogodd: return A(1) / (A(1) + std::exp(-s * share));
    case kLog1p: return std::expm1(s * share);
    case kStd: return std::sqrt(m * share);
    default: return s;
  }
}

template <class T>
void finish_chunks(const Problem& p, T* to, T* second, const Acc<T>* s, const Acc<T>* m, int64_t n) {
  typedef Widest<T> C;
  typedef Acc<T> A;
  const bool keeps = p.op == kMeanStd;
  const A share = A(1) / A(p.views);
  const auto value = [&](A* x, A* y, const A* lost, int64_t count) {
    for (int64_t l = 0; p.op == kMeanStd && l < count; ++l) x[l] += lost[l];
    for (int64_t l = 0; !keeps && l < count; ++l) x[l] = finish_value<A>(p, x[l], y[l]);
    for (int64_t l = 0; second && l < count; ++l) y[l] = std::sqrt(y[l] * share);
  };
  int64_t i = 0;
  for (; i + C::kLanes <= n; i += C::kLanes) {
    alignas(64) A x[C::kLanes], y[C::kLanes] = {};
    std::memcpy(x, s + i, sizeof x);
    if (m) std::memcpy(y, m + i, sizeof y);
    value(x, y, s + n + i, C::kLanes);
    fetch<C>(x).to(to + i);
    if (second) fetch<C>(y).to(second + i);
  }
  for (; i < n; ++i) {
    A x = s[i], y = m ? m[i] : 0;
    value(&x, &y, s + n + i, 1);
    down(to + i, x);
    if (second) down(second + i, y);
  }
}

// Sums, and what is the result as it is.
template <class T>
void finish_scaled(T* to, const Acc<T>* s, int64_t n, Acc<T> scale) {
  typedef Widest<T> C;
  int64_t i = 0;
  for (; i + C::kLanes <= n; i += C::kLanes) times(fetch<C>(s + i), scale).to(to + i);
  for (; i < n; ++i) down(to + i, s[i] * scale);
}

// The results of `n` elements, from s and m in the order of join_run.
template <class T>
void finish_run(const Problem& p, T* to, T* second, Acc<T>* s, const Acc<T>* m, int64_t n) {
  if constexpr (std::is_integral_v<T>) return finish_sorted(to, s, p.views, n);
  else if (p.op == kMedian) return finish_sorted(to, s, p.views, n);
  else if (p.op == kSum) return finish_scaled(to, s, n, Acc<T>(p.scale));
  else if (p.op == kMax || p.op == kMin) return finish_scaled(to, s, n, Acc<T>(1));
  else finish_chunks(p, to, second, s, m, n);
}

template <class T, int kOp>
void fold_typed(const Problem& p, const Units& u, bool streaming) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const Views<E> views(p);
  const bool pair = p.op == kMeanStd;
  for_units(p, u, p.planes() * p.Ho * p.Wo * p.V * p.views, [&](int64_t n) {
    const Unit t = unit_at(u, n, p.Ho, p.Wo);
    const Place<E> place(p, p.out, t.plane, 0), place2(p, p.spread, t.plane, 0);
    for_bands(p, t.region(), (1 + p.kept()) * sizeof(A), [&](const Region& r) {
      const int64_t elements = elements_of(p, r);
      E* stage = scratch<E>(0, 2 * elements);
      A* s = scratch<A>(1, elements * p.kept());
      A* m = kOp == kStd ? scratch<A>(2, elements) : nullptr;
      for (int g = 0; g < p.views; ++g) {
        const Source<E> from = source<E>(p, t.plane, g);
        const bool minus = kOp != kSum && negates(p, t.plane, g);  // the weights of a sum have the signs
        const Band<E> band = minus ? negated_band<E>(p, from, views[g], r, stage) : view_band<E>(p, from, views[g], r, stage, true);
        join_run<T, kOp>(s, m, numbers<T>(band.data), elements, g, A(weight(p, g, t.plane)));
      }
      E* second = pair ? stage + elements : nullptr;
      finish_run<T>(p, numbers<T>(stage), numbers<T>(second), s, m, elements);
      put<E>(p, place, dense_band<E>(p, r, stage), r, streaming);
      if (pair) put<E>(p, place2, dense_band<E>(p, r, second), r, streaming);
    });
  });
}

template <class T>
void reduce_typed(const Problem& p) {
  const Units u(p, p.Ho, p.Wo);
  const bool streaming = past_caches((std::min(p.views, p.added + 1) + 1) * p.planes() * p.Ho * p.Wo * p.V * int64_t(sizeof(T)));
  if constexpr (std::is_integral_v<T>) {
    fold_typed<T, kVote>(p, u, streaming);
  } else {
    if (p.op == kSum && (p.permutes() ? sum_moved<T>(p, u, streaming) : sum_small<T>(p, u, streaming) || sum_typed<T>(p, u, streaming)))
      return;
    with_op(p.op, [&](auto op) { fold_typed<T, op()>(p, u, streaming); });
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
