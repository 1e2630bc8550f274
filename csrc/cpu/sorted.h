// Reductions that need all values of an element at once, in order: the median and, of integers, the most frequent one.
#pragma once

#include "orbit.h"

namespace equikern {
namespace EQK_ISA {

template <class T>
inline void widen_run(Acc<T>* to, const T* from, int64_t n) {
  int64_t i = 0;
  if constexpr (!std::is_integral_v<T>) {
    typedef Widest<T> C;
    for (; i + C::kLanes <= n; i += C::kLanes) keep_in_order<C>(to + i, C::from(from + i));
    for (; i < n; ++i) to[i] = up(from[i]);
  } else {
    for (; i < n; ++i) to[i] = from[i];
  }
}

// The smaller of each two numbers to `low`, the other one to `high`.
template <class A>
inline void order_runs(A* __restrict low, A* __restrict high, int64_t n) {
  for (int64_t i = 0; i < n; ++i) {
    const A a = low[i], b = high[i];
    low[i] = b < a ? b : a, high[i] = b < a ? a : b;
  }
}

// Each element's `count` values, `step` apart, in rising order by Batcher's merge exchange: the same exchanges for all
// elements. With NaN among them in any order.
template <class A>
inline void sort_values(A* s, int64_t step, int count, int64_t n) {
  for (int p = 1; p < count; p *= 2)
    for (int k = p; k > 0; k /= 2)
      for (int j = k % p; j + k < count; j += 2 * k)
        for (int i = j; i < std::min(j + k, count - k); ++i)
          if (i / (2 * p) == (i + k) / (2 * p)) order_runs(s + i * step, s + (i + k) * step, n);
}

// The middle value, or the mean of the two middle ones; NaN where there is one.
template <class A>
inline void middle_values(A* to, const A* s, int64_t step, int count, int64_t n) {
  const A *low = s + (count - 1) / 2 * step, *high = s + count / 2 * step;
  for (int64_t i = 0; i < n; ++i) {
    const A sum = low[i] + high[i];
    to[i] = low == high ? low[i] : sum - sum == 0 ? sum * A(0.5) : low[i] * A(0.5) + high[i] * A(0.5);  // which does not overflow
  }
  for (int g = 0; g < count; ++g, s += step)
    for (int64_t i = 0; i < n; ++i) to[i] = s[i] != s[i] ? s[i] : to[i];
}

// The value of the longest run, the smallest one of several.
template <class A>
inline void frequent_values(A* to, const A* s, int64_t step, int count, int64_t n) {
  A run[kSorted] = {}, most[kSorted] = {};
  for (int g = 0; g < count; ++g, s += step) {
    const A* const before = g ? s - step : s;
    for (int64_t i = 0; i < n; ++i) {
      run[i] = s[i] == before[i] ? run[i] + 1 : 1;
      to[i] = run[i] > most[i] ? s[i] : to[i];
      most[i] = run[i] > most[i] ? run[i] : most[i];
    }
  }
}

// The results of n elements whose values lie n apart, and are sorted where they are.
template <class T>
void finish_sorted(T* to, Acc<T>* s, int count, int64_t n) {
  typedef Acc<T> A;
  const int64_t block = std::max<int64_t>(16, std::min<int64_t>(kSorted, kBand / int64_t(sizeof(A)) / count));
  A found[kSorted];
  for (int64_t first = 0; first < n; first += block) {
    const int64_t length = std::min(block, n - first);
    sort_values(s + first, n, count, length);
    if constexpr (std::is_integral_v<T>) {
      frequent_values(found, s + first, n, count, length);
      for (int64_t i = 0; i < length; ++i) to[first + i] = T(found[i]);
    } else {
      middle_values(found, s + first, n, count, length);
      round_run<T>(to + first, found, A(1), length);
    }
  }
}

}  // namespace EQK_ISA
}  // namespace equikern
