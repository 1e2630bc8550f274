// Planes as coarser ones: what every row and every column counts in each of a few cells, from one read, in double.
#include "kernels.h"
#include "lanes.h"
#include "units.h"

namespace equikern {
namespace EQK_ISA {

constexpr int kRows = 8;  // at a time, so that sums are read and written once for all of them

// to += Σ factors[i] · row i, of rows of n numbers that follow one another. A loop that compilers make vectors of.
template <int kCount, class A>
inline void add_rows(double* __restrict to, const A* __restrict from, const double* factors, int64_t n) {
  double f[kCount];
  for (int i = 0; i < kCount; ++i) f[i] = factors[i];
  for (int64_t j = 0; j < n; ++j) {
    double sum = to[j];
#pragma GCC unroll 8
    for (int i = 0; i < kCount; ++i) sum += double(from[i * n + j]) * f[i];
    to[j] = sum;
  }
}

// Numbers of two bytes in the accumulator's type; others as they are.
template <class T>
inline const Acc<T>* widened_rows(const T* from, int64_t n) {
  if constexpr (sizeof(T) == sizeof(Acc<T>)) {
    return from;
  } else {
    constexpr int L = kLanesOf<T>;
    Acc<T>* const to = scratch<Acc<T>>(1, n);
    int64_t j = 0;
    for (; j + L <= n; j += L) store<Acc<T>, L>(to + j, lift<T, L>(from + j));
    for (; j < n; ++j) to[j] = up(from[j]);
    return to;
  }
}

// Σ a[j] · b[j · step], as four sums side by side.
inline double product(const double* a, const double* b, int64_t step, int64_t n) {
  double part[4] = {};
  int64_t j = 0;
  for (; j + 4 <= n; j += 4)
    for (int k = 0; k < 4; ++k) part[k] += a[j + k] * b[(j + k) * step];
  for (; j < n; ++j) part[0] += a[j] * b[j * step];
  return (part[0] + part[1]) + (part[2] + part[3]);
}

template <class T>
void coarse_typed(const Coarse& c) {
  Problem p;
  p.threads = c.threads;
  for_units(p, c.planes, c.planes * c.H * c.W, [&](int64_t n) {
    double* const sums = scratch<double>(0, c.down * c.W);
    std::memset(sums, 0, c.down * c.W * sizeof(double));
    const T* const plane = static_cast<const T*>(c.x) + n * c.H * c.W;
    for (int64_t first = 0; first < c.H; first += kRows) {
      const int64_t rows = std::min<int64_t>(kRows, c.H - first);
      const Acc<T>* const from = widened_rows<T>(plane + first * c.W, rows * c.W);
      for (int64_t k = 0; k < c.down; ++k) {
        double factors[kRows];
        bool counts = false;  // rows that count nothing are left out together
        for (int64_t i = 0; i < rows; ++i) factors[i] = c.rows[(first + i) * c.down + k], counts |= factors[i] != 0;
        if (counts && rows == kRows) add_rows<kRows>(sums + k * c.W, from, factors, c.W);
        for (int64_t i = 0; counts && rows < kRows && i < rows; ++i) add_rows<1>(sums + k * c.W, from + i * c.W, factors + i, c.W);
      }
    }
    for (int64_t k = 0; k < c.down; ++k)
      for (int64_t l = 0; l < c.across; ++l)
        c.out[(n * c.down + k) * c.across + l] = product(sums + k * c.W, c.columns + l, c.across, c.W);
  });
}

void coarse(const Coarse& c) {
  with_float(c.dtype, [&](auto t) { coarse_typed<decltype(t)>(c); });
}

}  // namespace EQK_ISA
}  // namespace equikern
