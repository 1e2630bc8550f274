// Reductions over the views. Sums fold first and transpose once; the other reductions take one band after another.
#pragma once

#include "kernels.h"

namespace equikern {
namespace EQK_ISA {

// Views of a sum, by the one rearrangement they still need once their rows are walked in the right order.
struct SumClasses {
  std::vector<int> straight, mirrored, turned, both;
  explicit SumClasses(const Problem& p) {
    for (int g = 0; g < p.views; ++g) {
      const unsigned c = p.codes[g];
      (c & kTranspose ? (c & kReverseW ? both : turned) : (c & kReverseW ? mirrored : straight)).push_back(g);
    }
  }
};

template <class T>
struct Rows {
  const T* at[kMaxViews];
  Acc<T> weight[kMaxViews];
  int count = 0;
};

// base + Σ w·forward + mirror(Σ w·backward) over n elements; `backward` rows are given from their first element on.
template <class T, int L, int kForward, int kBackward, bool kWeighted, class Put>
inline void sum_row_lanes(const Rows<T>& forward, const Rows<T>& backward, const Acc<T>* base, int64_t n, Put put) {
  typedef Vec<Acc<T>, L> V;
  const int nf = kForward >= 0 ? kForward : forward.count, nb = kBackward >= 0 ? kBackward : backward.count;
  for (int64_t j = 0;;) {
    V sum = {}, mirrored = {};
    for (int k = 0; k < nf; ++k) {
      V v = Convert<T, L>::up(forward.at[k] + j);
      sum += kWeighted ? v * forward.weight[k] : v;
    }
    for (int k = 0; k < nb; ++k) {
      V v = Convert<T, L>::up(backward.at[k] + n - L - j);
      mirrored += kWeighted ? v * backward.weight[k] : v;
    }
    if (nb) sum += reverse_lanes<Acc<T>, L>(mirrored);
    if (base) sum += load<Acc<T>, L>(base + j);
    put(j, sum);
    if (j + L == n) return;
    j = std::min(j + L, n - L);
  }
}

template <class T, int L, bool kWeighted, class Put>
inline void sum_row_counted(const Rows<T>& f, const Rows<T>& b, const Acc<T>* base, int64_t n, Put put) {
  if (f.count == 1 && b.count == 1) return sum_row_lanes<T, L, 1, 1, kWeighted>(f, b, base, n, put);
  if (f.count == 2 && b.count == 2) return sum_row_lanes<T, L, 2, 2, kWeighted>(f, b, base, n, put);
  sum_row_lanes<T, L, -1, -1, kWeighted>(f, b, base, n, put);
}

struct Lanes16 { static constexpr int value = 16; };
struct Lanes8 { static constexpr int value = 8; };
struct Lanes4 { static constexpr int value = 4; };

// put(j, vector) gets the result; a row shorter than four elements goes one at a time through put1(j, number).
template <class T, bool kWeighted, class Put, class Put1>
inline void sum_row(const Rows<T>& f, const Rows<T>& b, const Acc<T>* base, int64_t n, Put put, Put1 put1) {
  if (n >= 16) return sum_row_counted<T, 16, kWeighted>(f, b, base, n, put);
  if (n >= 8) return sum_row_counted<T, 8, kWeighted>(f, b, base, n, put);
  if (n >= 4) return sum_row_counted<T, 4, kWeighted>(f, b, base, n, put);
  for (int64_t j = 0; j < n; ++j) {
    Acc<T> sum = 0, mirrored = 0;
    for (int k = 0; k < f.count; ++k) sum += up(f.at[k][j]) * f.weight[k];
    for (int k = 0; k < b.count; ++k) mirrored += up(b.at[k][n - 1 - j]) * b.weight[k];
    sum += mirrored;
    put1(j, base ? sum + base[j] : sum);
  }
}

template <class T>
inline void gather_rows(const Problem& p, const std::vector<int>& views, const T* from, int64_t plane, int64_t line, int64_t first, Rows<T>& rows) {
  rows.count = 0;
  for (int g : views) {
    rows.at[rows.count] = from + g * p.in.group + (p.codes[g] & kReverseH ? p.H - 1 - line : line) * p.in.row + first;
    rows.weight[rows.count++] = Acc<T>(weight(p, g, plane));
  }
}

template <class T, int L>
inline void put_lanes(T* to, Vec<Acc<T>, L> v, Acc<T> scale) {
  Convert<T, L>::down(to, v * scale);
}

struct SumCall {
  bool streaming;
  const SumClasses* classes;
};

template <class T, bool kWeighted>
void sum_unit(const Problem& p, const Units& u, int64_t n, void* shared) {
  typedef Acc<T> A;
  const SumCall& call = *static_cast<const SumCall*>(shared);
  const SumClasses& c = *call.classes;
  const Unit t = unit_at(u, n, p.Ho, p.Wo);
  const int64_t rows = t.r1 - t.r0, cols = t.c1 - t.c0;
  const A scale = A(p.scale);
  const bool folded = !c.turned.empty() || !c.both.empty();
  A* fold = folded ? reinterpret_cast<A*>(scratch(1, rows * cols * int64_t(sizeof(A)))) : nullptr;
  // One weight gathering per row and class; the arrays are large only because any number of views is allowed.
  static thread_local Rows<T> forward, backward;
  for (int64_t k = 0; k < t.planes; ++k) {
    const int64_t plane = t.plane + k;
    const T* from = at<T>(p, p.in, plane);
    if (folded) {  // rows of the fold are columns of the result
      for (int64_t j = t.c0; j < t.c1; ++j) {
        gather_rows<T>(p, c.turned, from, plane, j, t.r0, forward);
        gather_rows<T>(p, c.both, from, plane, j, p.W - t.r1, backward);
        A* line = fold + (j - t.c0) * rows;
        sum_row<T, kWeighted>(forward, backward, nullptr, rows,
          [&](int64_t i, auto v) { std::memcpy(line + i, &v, sizeof v); }, [&](int64_t i, A v) { line[i] = v; });
      }
    }
    T* to = at<T>(p, p.out, plane);
    const bool direct = !call.streaming && p.out.col == 1;
    for_bands(Region{1, t.r0, t.r1, t.c0, t.c1}, 1, [&](const Region& r) {
      const int64_t height = r.i1 - r.i0;
      A* base = nullptr;
      if (folded) {
        base = reinterpret_cast<A*>(scratch(2, height * cols * int64_t(sizeof(A))));
        transpose_any<Bits<A>>(reinterpret_cast<Bits<A>*>(base), cols, reinterpret_cast<Bits<A>*>(fold) + (r.i0 - t.r0), rows, height, cols);
      }
      T* stage = direct ? nullptr : reinterpret_cast<T*>(scratch(0, height * cols * int64_t(sizeof(T))));
      for (int64_t i = r.i0; i < r.i1; ++i) {
        gather_rows<T>(p, c.straight, from, plane, i, t.c0, forward);
        gather_rows<T>(p, c.mirrored, from, plane, i, p.W - t.c1, backward);
        T* line = direct ? to + i * p.out.row + t.c0 : stage + (i - r.i0) * cols;
        sum_row<T, kWeighted>(forward, backward, base ? base + (i - r.i0) * cols : nullptr, cols,
          [&](int64_t j, auto v) { put_lanes<T, int(sizeof(v) / sizeof(A))>(line + j, v, scale); },
          [&](int64_t j, A v) { down(line + j, v * scale); });
      }
      if (!direct) put<Bits<T>>(p, p.out, reinterpret_cast<Bits<T>*>(to), 0, dense_band<T>(p, r, stage), r, call.streaming);
    });
  }
}

// --- everything else: one band after another into float32 (float64) arrays -------------------------------------

template <class A>
inline A clamped_logit(A v) {
  const A low = A(1e-6), high = A(1) - A(1e-6);
  v = v < low ? low : v > high ? high : v;  // NaN stays
  return std::log(v / (A(1) - v));
}

// View number k joins: s the running value (mean for the spreads), m the sum of squared deviations.
template <class T>
inline void join_run(const Problem& p, Acc<T>* s, Acc<T>* m, const T* from, int64_t n, int k, Acc<T> w) {
  typedef Acc<T> A;
  switch (p.op) {
    case kSum:
      for (int64_t i = 0; i < n; ++i) { A v = up(from[i]) * w; s[i] = k ? s[i] + v : v; }
      return;
    case kMax:
      for (int64_t i = 0; i < n; ++i) { A v = up(from[i]); s[i] = !k || v > s[i] || v != v ? v : s[i]; }
      return;
    case kMin:
      for (int64_t i = 0; i < n; ++i) { A v = up(from[i]); s[i] = !k || v < s[i] || v != v ? v : s[i]; }
      return;
    case kGmean:
      for (int64_t i = 0; i < n; ++i) { A v = std::log(up(from[i])); s[i] = k ? s[i] + v : v; }
      return;
    case kHmean:
      for (int64_t i = 0; i < n; ++i) { A v = A(1) / up(from[i]); s[i] = k ? s[i] + v : v; }
      return;
    case kTsharpen:
      for (int64_t i = 0; i < n; ++i) { A v = std::sqrt(up(from[i])); s[i] = k ? s[i] + v : v; }
      return;
    case kLogodd:
      for (int64_t i = 0; i < n; ++i) { A v = clamped_logit(A(up(from[i]))); s[i] = k ? s[i] + v : v; }
      return;
    default: {  // Welford
      const A share = A(1) / A(k + 1);
      for (int64_t i = 0; i < n; ++i) {
        A v = up(from[i]);
        if (!k) { s[i] = v; m[i] = v - v; continue; }
        A d = v - s[i];
        s[i] += d * share;
        m[i] += d * (v - s[i]);
      }
    }
  }
}

template <class T>
inline void finish_run(const Problem& p, T* to, T* second, const Acc<T>* s, const Acc<T>* m, int64_t n) {
  typedef Acc<T> A;
  const A share = A(1) / A(p.views), scale = A(p.scale);
  for (int64_t i = 0; i < n; ++i) {
    A v = s[i];
    switch (p.op) {
      case kSum: v *= scale; break;
      case kGmean: v = std::exp(v * share); break;
      case kHmean: v = A(1) / (v * share); break;
      case kTsharpen: v *= share; break;
      case kLogodd: v = A(1) / (A(1) + std::exp(-v * share)); break;
      case kStd: v = std::sqrt(m[i] * share); break;
      default: break;
    }
    down(to + i, v);
    if (second) down(second + i, std::sqrt(m[i] * share));
  }
}

template <class T>
void fold_unit(const Problem& p, const Units& u, int64_t n, void* shared) {
  typedef Acc<T> A;
  typedef Bits<T> E;
  const Call& call = *static_cast<const Call*>(shared);
  const Tables<E>& tables = *static_cast<const Tables<E>*>(call.tables);
  const Unit t = unit_at(u, n, p.Ho, p.Wo);
  const bool pair = p.op == kMeanStd;
  for_bands(Region{t.planes, t.r0, t.r1, t.c0, t.c1}, p.V, [&](const Region& r) {
    const int64_t elements = region_elements(p, r);
    E* stage = reinterpret_cast<E*>(scratch(0, elements * int64_t(sizeof(E))));
    A* s = reinterpret_cast<A*>(scratch(1, elements * int64_t(sizeof(A))));
    A* m = p.op >= kStd ? reinterpret_cast<A*>(scratch(2, elements * int64_t(sizeof(A)))) : nullptr;
    for (int g = 0; g < p.views; ++g) {
      const E* from = at<E>(p, p.in, t.plane) + g * p.in.group;
      Band<E> band = view_band<E>(p, from, next_plane(p, p.in), p.codes[g], r, stage, false, tables[g]);
      const A w = A(weight(p, g, t.plane));
      for_runs(p, band, r, [&](int64_t to, int64_t at_band, int64_t length) {
        join_run<T>(p, s + to, m ? m + to : nullptr, reinterpret_cast<const T*>(band.data) + at_band, length, g, w);
      });
    }
    T* second = pair ? reinterpret_cast<T*>(scratch(3, elements * int64_t(sizeof(T)))) : nullptr;
    finish_run<T>(p, reinterpret_cast<T*>(stage), second, s, m, elements);
    put<E>(p, p.out, at<E>(p, p.out, t.plane), next_plane(p, p.out), dense_band<E>(p, r, stage), r, call.streaming);
    if (pair) put<E>(p, p.other, at<E>(p, p.other, t.plane), next_plane(p, p.other), dense_band<T>(p, r, second), r, call.streaming);
  });
}

template <class T>
void reduce_typed(const Problem& p) {
  const int64_t results = p.planes() * p.Ho * p.Wo * p.V;
  const Units u(p, p.Ho, p.Wo);
  const bool streaming = results * int64_t(sizeof(T)) >= kStreamBytes / 2;
  const bool small = SmallPlane<Bits<T>>::available && is_small(p) && p.planes() >= 32;
  if (p.op == kSum && p.V == 1 && p.in.col == 1 && !small) {
    const SumClasses classes(p);
    SumCall call{streaming, &classes};
    for_units(p, u, results * p.views, p.weights ? sum_unit<T, true> : sum_unit<T, false>, &call);
    return;
  }
  const Tables<Bits<T>> tables(p);
  Call call{streaming, &tables};
  for_units(p, u, results * p.views, fold_unit<T>, &call);
}

// --- entry points ----------------------------------------------------------------------------------------------

void orbit(const Problem& p) {
  if (p.exact) {
    switch (element_size(p.dtype)) {
      case 1: return orbit_typed<uint8_t, true>(p);
      case 2: return orbit_typed<uint16_t, true>(p);
      case 4: return orbit_typed<uint32_t, true>(p);
      default: return orbit_typed<uint64_t, true>(p);
    }
  }
  switch (p.dtype) {
    case Dtype::kFloat32: return orbit_typed<float, false>(p);
    case Dtype::kFloat64: return orbit_typed<double, false>(p);
    case Dtype::kFloat16: return orbit_typed<Half, false>(p);
    default: return orbit_typed<BFloat16, false>(p);
  }
}

void reduce(const Problem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return reduce_typed<float>(p);
    case Dtype::kFloat64: return reduce_typed<double>(p);
    case Dtype::kFloat16: return reduce_typed<Half>(p);
    default: return reduce_typed<BFloat16>(p);
  }
}

void orbit_dot(const Problem& p) {
  switch (p.dtype) {
    case Dtype::kFloat32: return dot_typed<float>(p);
    case Dtype::kFloat64: return dot_typed<double>(p);
    case Dtype::kFloat16: return dot_typed<Half>(p);
    default: return dot_typed<BFloat16>(p);
  }
}

void select(const Problem& p) {
  if (p.scores) p.scores_double ? choose_views<double>(p) : choose_views<float>(p);
  switch (element_size(p.dtype)) {
    case 1: return select_typed<uint8_t>(p);
    case 2: return select_typed<uint16_t>(p);
    case 4: return select_typed<uint32_t>(p);
    default: return select_typed<uint64_t>(p);
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
