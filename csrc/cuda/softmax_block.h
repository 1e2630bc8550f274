// What one thread of a mean of softmaxes does between barriers. A block stages a row of every view, read once; while
// the rest is on its way, each thread finds the largest logit and the sum of exponentials of what it has copied itself.
// Exponentials are those of backends/triton/exponentials.py, with its accuracy. The order of a sum depends on the
// row's length and on its start within 16 bytes alone.
#pragma once

#include <cmath>

#include "row_plan.h"
#include "staging.h"

namespace equikern {
namespace cuda {

// Vectors that a thread copies in a step, steps whose vectors are on their way (96 KiB), vectors computed with at once.
constexpr int kCopied = 4, kAhead = 6, kTogether = 2;

// Ends a group of copies of this thread.
EQK_HD void end_group() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.commit_group;" ::: "memory");
#endif
}

// Waits for this thread's copies but those of the last groups.
template <int kGroups>
EQK_HD void await_groups_but() {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  asm volatile("cp.async.wait_group %0;" ::"n"(kGroups) : "memory");
#endif
}

// 2^t; below 2^-126 it is 0.
EQK_HD float raised(float t) {
#if defined(__CUDA_ARCH__)
  float power;
  asm("ex2.approx.ftz.f32 %0, %1;" : "=f"(power) : "f"(t));
  return power;
#else
  return t < -126.0f ? 0.0f : std::exp2(t);
#endif
}

// exp(d) of a difference of logits.
EQK_HD float power(float d) { return raised(d * 1.4426950408889634f); }
EQK_HD double power(double d) { return std::exp(d); }

// What a logit becomes a probability with: see `scale_of` and `relative` of exponentials.py.
template <class A>
struct Shift {
  A unit, shift;
};
EQK_HD Shift<float> shift_of(float top, float unit = 1.4426950408889634f) { return {unit, top * unit}; }
EQK_HD Shift<double> shift_of(double top) { return {1, top}; }

EQK_HD float relative(float v, const Shift<float>& s) { return raised(std::fma(v, s.unit, -s.shift)); }
EQK_HD double relative(double v, const Shift<double>& s) { return std::exp(v - s.shift); }

// What the exponentials are to be multiplied by, since the shift is rounded.
EQK_HD float factor_of(float top, const Shift<float>& s) { return raised(std::fma(-top, s.unit, s.shift)); }
EQK_HD double factor_of(double, const Shift<double>&) { return 1; }

// The product of one so large and the unit overflows.
EQK_HD bool overflows(float top) { return !(std::fabs(top) < 1e38f); }
EQK_HD bool overflows(double) { return false; }

EQK_HD float lowest(float) { return -3.4028234663852886e38f; }
EQK_HD double lowest(double) { return -1.7976931348623157e308; }

// The largest of some logits, no less than the lowest number, and the sum of exponentials of the differences to it.
template <class A>
struct Softened {
  A top = lowest(A()), total = 0;

  EQK_HD void add(A v) {
    const A higher = std::fmax(top, v);
    total = total * power(top - higher) + power(v - higher);
    top = higher;
  }
};

template <class A>
EQK_HD Softened<A> joined(const Softened<A>* from, int count, int step) {
  Softened<A> all;
  for (int k = 0; k < count; ++k) all.top = std::fmax(all.top, from[k * step].top);
  for (int k = 0; k < count; ++k) all.total += from[k * step].total * power(from[k * step].top - all.top);
  return all;
}

// The same of many logits that follow one another, in fewer instructions; not where the largest one overflows.
template <class A>
struct Running {
  A top = sizeof(A) == 8 ? lowest(A()) : A(-1e38), total = 0;
  Shift<A> at = shift_of(top);

  template <int kCount>
  EQK_HD void add(const A (&v)[kCount]) {
    A part[kCount];
    for (int k = 0; k < kCount; ++k) part[k] = v[k];
    for (int half = kCount / 2; half > 0; half /= 2)
      for (int k = 0; k < half; ++k) part[k] = std::fmax(part[k], part[k + half]);
    top = std::fmax(top, part[0]);
    const Shift<A> now = shift_of(top);
    for (int k = 0; k < kCount; ++k) part[k] = relative(v[k], now);
    for (int half = kCount / 2; half > 0; half /= 2)
      for (int k = 0; k < half; ++k) part[k] += part[k + half];
    total = std::fma(total, between(at.shift, now.shift), part[0]);
    at = now;
  }
  EQK_HD Softened<A> found() const {
    Softened<A> all;
    all.top = top, all.total = total * factor_of(top, at);
    return all;
  }

  static EQK_HD float between(float before, float now) { return raised(before - now); }
  static EQK_HD double between(double before, double now) { return std::exp(before - now); }
};

// A view's. Of logarithms, the shift is the largest logit and `log` that of the sum.
template <class A>
struct alignas(16) RowScale {
  Shift<A> at;
  A factor, log;
};

// The numbers of 16 bytes, and back: word by word, since nvcc puts an array of narrow elements on the stack.
EQK_HD void widen_word(uint32_t word, float* to, float) { *to = bits_to_float(word); }
template <class T>
EQK_HD void widen_word(uint32_t word, float* to, T) {
  to[0] = widen(T{static_cast<uint16_t>(word)});
  to[1] = widen(T{static_cast<uint16_t>(word >> 16)});
}

template <class T>
EQK_HD void wide_at(const unsigned char* shared, float* to) {
  constexpr int kPer = kLanes<T> / 4;
  const Bytes16 from = *reinterpret_cast<const Bytes16*>(shared);
  widen_word(static_cast<uint32_t>(from.low), to, T{});
  widen_word(static_cast<uint32_t>(from.low >> 32), to + kPer, T{});
  widen_word(static_cast<uint32_t>(from.high), to + 2 * kPer, T{});
  widen_word(static_cast<uint32_t>(from.high >> 32), to + 3 * kPer, T{});
}
template <class T>
EQK_HD void wide_at(const unsigned char* shared, double* to) {
  memcpy(to, shared, 16);
}

EQK_HD uint32_t narrow_word(const float* from, float) { return float_to_bits(*from); }
template <class T>
EQK_HD uint32_t narrow_word(const float* from, T) {
#if defined(__CUDA_ARCH__) && __CUDA_ARCH__ >= 800
  uint32_t word;
  if (std::is_same<T, BFloat16>::value)
    asm("cvt.rn.bf16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
  else
    asm("cvt.rn.f16x2.f32 %0, %1, %2;" : "=r"(word) : "f"(from[1]), "f"(from[0]));
  return word;
#else
  T low, high;
  narrow(from[0], low), narrow(from[1], high);
  return low.bits | static_cast<uint32_t>(high.bits) << 16;
#endif
}

template <class T>
EQK_HD Bytes16 narrow_vector(const float (&from)[kLanes<T>]) {
  constexpr int kPer = kLanes<T> / 4;
  const auto pair = [&](int k) {
    return narrow_word(from + k * kPer, T{}) | static_cast<uint64_t>(narrow_word(from + (k + 1) * kPer, T{})) << 32;
  };
  return {pair(0), pair(2)};
}
template <class T>
EQK_HD Bytes16 narrow_vector(const double (&from)[2]) {
  Bytes16 to;
  memcpy(&to, from, sizeof(to));
  return to;
}

// A row in whole vectors, and what lies in front of the first and behind the last, fewer than kLanes each.
template <class T>
struct RowParts {
  int head, vectors;

  EQK_HD RowParts(const T* row, int V) {
    head = (kLanes<T> - misalignment(row)) % kLanes<T>;
    head = head < V ? head : V;
    vectors = (V - head) / kLanes<T>;
  }
  // One of the entries in no vector for each of the first threads; V or more: none.
  EQK_HD int single(int thread) const { return thread < head ? thread : vectors * kLanes<T> + thread; }
};

template <class T, bool kLog>
struct SoftmaxMean {
  using A = Accumulator<T>;
  struct State {
    int64_t y, out;  // where the rows start
  };
  static constexpr int kPhases = 5;
  static constexpr int kStep = kCopied * kThreads, kEntries = 4;

  template <int kPhase>
  static EQK_HD void phase(const RowPlan& p, int64_t row, int thread, unsigned char* shared, State& at) {
    RowScale<A>* scales = reinterpret_cast<RowScale<A>*>(shared);
    Softened<A>* lanes = reinterpret_cast<Softened<A>*>(shared + p.lanes_start);
    Softened<A>* folded = lanes + p.n_views * kThreads;
    if constexpr (kPhase == 0) {
      at = starts(p, row);
      read(p, at, thread, shared, lanes);
    } else if constexpr (kPhase == 1) {
      for (int slot = thread; slot < p.n_views * kWarp; slot += kThreads)
        folded[slot] = joined(lanes + slot / kWarp * kThreads + slot % kWarp, kThreads / kWarp, kWarp);
    } else if constexpr (kPhase == 2) {
      for (int g = thread; g < p.n_views; g += kThreads)
        scales[g] = finish_view(p, row, g, joined(folded + g * kWarp, kWarp, 1));
    } else {
      T* out = reinterpret_cast<T*>(p.out.data) + at.out;
      const A level = kLog ? mean_log(p, scales) : A(0);
      const int32_t* dense = p.positions ? nullptr : p.sources;
      if (kPhase == 3 && alike(p, at))
        write_vectors(p, at, thread, shared, scales, level, out);
      else if (kPhase == 3)
        write_entries(p, at, thread, shared, scales, level, dense, nullptr, p.V, out);
      else if (p.positions)  // behind a barrier: it keeps the order of an entry's two writes
        write_entries(p, at, thread, shared, scales, level, p.sources, p.positions, p.moved, out);
    }
  }

  static EQK_HD State starts(const RowPlan& p, int64_t row) {
    State at{0, 0};
    for (int d = p.n_lead - 1; d >= 0; --d) {
      const int64_t rest = d > 0 ? quotient(row, p.lead[d]) : 0, k = row - rest * p.lead[d];
      at.y += k * p.y.lead[d];
      at.out += k * p.out.lead[d];
      row = rest;
    }
    return at;
  }

  static EQK_HD const T* row_of(const RowPlan& p, const State& at, int g) {
    return reinterpret_cast<const T*>(p.y.data) + at.y + g * p.y.view;
  }

  // The byte of shared memory where a view's row is staged.
  static EQK_HD int staged(const RowPlan& p, const T* row, int g) {
    return p.rows_start + g * p.run_bytes + misalignment(row) * int(sizeof(T));
  }

  // Whether vectors of all views and of the result lie alike, and no view moves most entries.
  static EQK_HD bool alike(const RowPlan& p, const State& at) {
    bool same = p.positions || !p.sources;
    const int out = misalignment(reinterpret_cast<const T*>(p.out.data) + at.out);
    for (int g = 0; g < p.n_views; ++g) same = same && misalignment(row_of(p, at, g)) == out;
    return same;
  }

  // The vectors that a thread copies, those of one view after another, in `steps` steps a view.
  struct Copies {
    const T* from;
    int to, left, view, step;

    EQK_HD Copies(const RowPlan& p, const State& at, int thread) { start(p, at, thread, 0); }
    EQK_HD void start(const RowPlan& p, const State& at, int thread, int g) {
      view = g, step = left = 0;
      if (g == p.n_views) return;
      const T* row = row_of(p, at, g);
      const RowParts<T> parts(row, p.V);
      left = parts.vectors - thread;
      from = row + parts.head + thread * kLanes<T>, to = staged(p, row, g) + parts.head * int(sizeof(T)) + thread * 16;
    }
    // Those of a step are a group.
    EQK_HD void next(const RowPlan& p, const State& at, int thread, int steps, unsigned char* shared) {
      for (int u = 0; u < kCopied; ++u)
        if (u * kThreads < left)
          copy_vector(from + u * kThreads * kLanes<T>, reinterpret_cast<T*>(shared + to + u * kThreads * 16));
      end_group();
      from += kStep * kLanes<T>, to += kStep * 16, left -= kStep;
      if (++step == steps && view < p.n_views) start(p, at, thread, view + 1);
    }
  };

  static EQK_HD void read(const RowPlan& p, const State& at, int thread, unsigned char* shared, Softened<A>* lanes) {
    const int steps = (p.V / kLanes<T> + kStep - 1) / kStep;
    Copies copies(p, at, thread);
    for (int k = 0; k < kAhead; ++k) copies.next(p, at, thread, steps, shared);
    for (int g = 0; g < p.n_views; ++g) {
      const T* row = row_of(p, at, g);
      const RowParts<T> parts(row, p.V);
      const int start = staged(p, row, g), vectors = start + parts.head * int(sizeof(T)), single = parts.single(thread);
      const bool has_single = kLanes<T> > 1 && single < p.V;
      Running<A> running;
      if (has_single) {
        const T value = row[single];
        reinterpret_cast<T*>(shared + start)[single] = value;
        const A alone[1] = {widen(value)};
        running.add(alone);
      }
      for (int step = 0; step < steps; ++step) {
        copies.next(p, at, thread, steps, shared);
        await_groups_but<kAhead>();
        for (int u = 0; u < kCopied; u += kTogether) {
          const int v = step * kStep + u * kThreads + thread;
          A both[kTogether * kLanes<T>], one[kLanes<T>];
          if (v + kThreads < parts.vectors) {
            for (int k = 0; k < kTogether; ++k)
              wide_at<T>(shared + vectors + (v + k * kThreads) * 16, both + k * kLanes<T>);
            running.add(both);
          } else if (v < parts.vectors) {
            wide_at<T>(shared + vectors + v * 16, one);
            running.add(one);
          }
        }
      }
      Softened<A> found = running.found();
      if (overflows(found.top)) {
        found = Softened<A>();
        if (has_single) found.add(widen(reinterpret_cast<T*>(shared + start)[single]));
        for (int v = thread; v < parts.vectors; v += kThreads)
          for (int k = 0; k < kLanes<T>; ++k) found.add(widen(reinterpret_cast<T*>(shared + vectors + v * 16)[k]));
      }
      lanes[g * kThreads + thread] = found;
    }
  }

  static EQK_HD RowScale<A> finish_view(const RowPlan& p, int64_t row, int g, const Softened<A>& all) {
    const A log = std::log(all.total);
    static_cast<A*>(p.lse)[g * p.rows + row] = all.top + log;
    if (kLog) return {{1, all.top}, 1, log};
    const Shift<A> at = scale_of(all.top);
    return {at, factor_of(all.top, at) / (all.total * p.n_views), log};
  }
  static EQK_HD Shift<float> scale_of(float top) { return overflows(top) ? shift_of(top, 0.0009765625f) : shift_of(top); }
  static EQK_HD Shift<double> scale_of(double top) { return shift_of(top); }

  static EQK_HD A mean_log(const RowPlan& p, const RowScale<A>* scales) {
    A sum = 0;
    for (int g = 0; g < p.n_views; ++g) sum += scales[g].log;
    return sum / p.n_views;
  }

  // The sum of the views with one more; of probabilities, whose factors have the |G| in them, it is the mean.
  static EQK_HD A with_view(A sum, A v, const RowScale<A>& scale) {
    return kLog ? sum + (v - scale.at.shift) : std::fma(relative(v, scale.at), scale.factor, sum);
  }
  static EQK_HD A finished(A sum, A share, A level) { return kLog ? std::fma(sum, share, -level) : sum; }

  static EQK_HD void write_vectors(const RowPlan& p, const State& at, int thread, unsigned char* shared,
                                   const RowScale<A>* scales, A level, T* out) {
    const RowParts<T> parts(out, p.V);
    const A share = A(1) / p.n_views;
    Bytes16* to = reinterpret_cast<Bytes16*>(out + parts.head);
    const unsigned char* first = shared + staged(p, out, 0) + parts.head * int(sizeof(T));
    for (int v = thread; v < parts.vectors; v += kTogether * kThreads) {
      A sums[kTogether][kLanes<T>] = {};
      const unsigned char* from = first + v * 16;
      const int more = v + kThreads < parts.vectors ? kThreads : 0;  // to the second vector, or the first again
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
      for (int g = 0; g < p.n_views; ++g, from += p.run_bytes) {
        const RowScale<A> scale = scales[g];
        for (int u = 0; u < kTogether; ++u) {
          A values[kLanes<T>];
          wide_at<T>(from + u * more * 16, values);
          for (int k = 0; k < kLanes<T>; ++k) sums[u][k] = with_view(sums[u][k], values[k], scale);
        }
      }
      for (int u = 0; u < kTogether; ++u) {
        for (int k = 0; k < kLanes<T>; ++k) sums[u][k] = finished(sums[u][k], share, level);
        if (u == 0 || more) store_group(to + v + u * more, narrow_vector<T>(sums[u]));
      }
    }
    const int single = parts.single(thread);
    if (kLanes<T> > 1 && single < p.V)
      write_entries(p, at, single, shared, scales, level, nullptr, nullptr, single + 1, out);
  }

  // Entries of a list from n on: of their positions in the result, and of where each view has them; without either, they
  // are where they are.
  static EQK_HD void write_entries(const RowPlan& p, const State& at, int n, unsigned char* shared,
                                   const RowScale<A>* scales, A level, const int32_t* places, const int32_t* positions,
                                   int count, T* out) {
    const A share = A(1) / p.n_views;
    for (; n < count; n += kEntries * kThreads) {
      A sums[kEntries] = {};
#if defined(__CUDA_ARCH__)
#pragma unroll 1
#endif
      for (int g = 0; g < p.n_views; ++g) {
        const RowScale<A> scale = scales[g];
        const T* row = reinterpret_cast<const T*>(shared + staged(p, row_of(p, at, g), g));
        for (int e = 0; e < kEntries; ++e) {
          const int m = n + e * kThreads < count ? n + e * kThreads : n;
          sums[e] = with_view(sums[e], widen(row[places ? places[g * count + m] : m]), scale);
        }
      }
      for (int e = 0; e < kEntries; ++e) {
        const int m = n + e * kThreads;
        if (m < count) narrow(finished(sums[e], share, level), out[positions ? positions[m] : m]);
      }
    }
  }
};

}  // namespace cuda
}  // namespace equikern
